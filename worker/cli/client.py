"""The commands of whoever asks for pictures: submit, watch, cancel, queue, and the dead letters."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli import output, request_sources
from worker.cli.console import client, fail, or_exit, printable, settings
from worker.cli.dead_letters import DeadLetters
from worker.cli.terminal_image import Preview
from worker.exit_codes import INVALID

app = typer.Typer()
dead = typer.Typer(help="Tasks that no worker could finish.", no_args_is_help=True)
app.add_typer(dead, name="dead")

Machine = Annotated[bool, typer.Option("--json", help="For machines: one JSON object a line.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the pictures; implies --wait.")]
Shown = Annotated[
    Preview, typer.Option("--preview", help="How a terminal shows the pictures; a pipe gets none.")
]


@app.command()
def submit(  # noqa: PLR0913  # a flag for each thing that people set by hand
    prompt: Annotated[str | None, typer.Argument(help="One of these four says what.")] = None,
    *,
    request: Annotated[
        str | None, typer.Option(help="File of JSON: one request, a list, or one a line.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="File with a prompt on each line.")] = None,
    from_image: Annotated[
        Path | None, typer.Option(help="A PNG of a worker's, to be made again.")
    ] = None,
    negative_prompt: str | None = None,
    seed: int | None = None,
    steps: Annotated[int | None, typer.Option(help="num_inference_steps")] = None,
    guidance_scale: float | None = None,
    sag_scale: float | None = None,
    scheduler: str | None = None,
    height: int | None = None,
    width: int | None = None,
    images: Annotated[int | None, typer.Option(help="num_images_per_prompt")] = None,
    output_type: str | None = None,
    model: str | None = None,
    preview_every: Annotated[
        int | None, typer.Option(help="Steps between two previews while it is made.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any field, as JSON; again for more."),
    ] = None,
    task_id: Annotated[
        str | None,
        typer.Option(
            help="Id of the task (of a single one); the same id again makes no second task."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the tasks to their ends.")] = False,
    out: Out = None,
    preview: Shown = Preview.AUTO,
    machine: Machine = False,
) -> None:
    """Submit tasks: a PROMPT, --request, --prompts (`-` is standard input) or --from-image.

    Flags and --set stand above what a file says. Prints the ids, then with --wait the pictures'
    URLs, with --out the files.
    """
    sources = [prompt, request, prompts, from_image]
    if sum(each is not None for each in sources) != 1:
        fail("say what to make in one way: PROMPT, --request, --prompts or --from-image", INVALID)
    given = {
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "sag_scale": sag_scale,
        "scheduler": scheduler,
        "height": height,
        "width": width,
        "num_images_per_prompt": images,
        "output_type": output_type,
        "model": model,
        "preview_every": preview_every,
    }

    def requests() -> list[dict[str, Any]]:
        if request is not None:
            found = request_sources.from_json(request)
        elif prompts is not None:
            found = request_sources.from_prompts(prompts)
        elif from_image is not None:
            found = [request_sources.from_picture(from_image)]
        else:
            found = [{"prompt": prompt}]
        return request_sources.with_flags(found, given, set_ or [])

    found = or_exit(requests)
    ids = [task_id] if task_id is not None else None
    with client() as asked:
        handles = or_exit(lambda: asked.submit_many(found, ids))
        for handle in handles:
            print(json.dumps({"task_id": handle.task_id}) if machine else handle.task_id)
        sys.stdout.flush()
        if wait or out:
            output.follow(handles, out, preview, machine=machine)


@app.command()
def watch(
    task_id: str,
    *,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures.")] = None,
    preview: Shown = Preview.AUTO,
    machine: Machine = False,
) -> None:
    """Follow a task to its end, whoever submitted it."""
    with client() as asked:
        handle = or_exit(lambda: asked.handle(task_id))
        or_exit(handle.status)
        output.follow([handle], out, preview, machine=machine)


@app.command()
def cancel(task_id: str) -> None:
    """Ask for a task to end; prints the status that it had."""
    with client() as asked:
        print(or_exit(lambda: asked.handle(task_id).cancel()) or "unknown")


@app.command()
def queue(*, machine: Machine = False) -> None:
    """How many messages wait, by model and priority, and what each worker is doing."""
    from worker.cli import health  # noqa: PLC0415  # Celery's own side

    found = settings()
    queues = or_exit(lambda: health.depths(found))
    workers = or_exit(lambda: health.everybody(found))
    if machine:
        print(json.dumps({"queues": queues, "workers": workers}))
        return
    for model, lengths in queues.items():
        waiting = ", ".join(f"{count} of priority {each}" for each, count in lengths.items())
        print(f"{model}: {waiting or 'nothing waits'}")
    for name, worker in sorted(workers.items()):
        what = worker.get("refusal") or worker.get("error") or "well"
        running = " ".join(worker.get("running", [])) or "nothing"
        print(printable(f"{name} ({worker.get('device', '?')}, {what}): {running}"))
    if not workers:
        print("no worker answers")


@dead.command("list")
def dead_list() -> None:
    """Print the dead letters, one a line: when, task, attempts, reason; separated by tabs."""
    with client() as asked:
        for each in or_exit(lambda: list(DeadLetters(asked))):
            at = each.at.isoformat(timespec="seconds").replace("+00:00", "Z")
            print(at, printable(each.task_id), each.attempt, ascii(each.reason)[1:-1], sep="\t")


@dead.command("replay")
def dead_replay(task_id: str) -> None:
    """Submit a dead task again, under a new id, which is printed; its letter is removed."""
    with client() as asked:
        new_id = or_exit(lambda: DeadLetters(asked).replay(task_id))
    print(new_id or fail(f"no dead letter of task {task_id}"))
