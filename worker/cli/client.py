"""The `sag-worker` commands for callers: submit, watch, cancel, queue and dead letters."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli import output, request_sources
from worker.cli.console import client, fail, or_exit, printable, settings
from worker.cli.dead_letters import DeadLetters
from worker.cli.terminal_image import Preview
from worker.exit_codes import INVALID

app = typer.Typer()
dead = typer.Typer(help="Dead letters: tasks that no worker could finish.", no_args_is_help=True)
app.add_typer(dead, name="dead")

Machine = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Out = Annotated[Path | None, typer.Option(help="Save the images in this folder; implies --wait.")]
Shown = Annotated[
    Preview, typer.Option("--preview", help="Draw the images in a terminal; never into a pipe.")
]


@app.command()
def submit(  # noqa: PLR0913  # a flag for each field that people set by hand
    prompt: Annotated[
        str | None, typer.Argument(help="What to draw; or one of the next three options.")
    ] = None,
    *,
    request: Annotated[
        str | None, typer.Option(help="JSON file: one request, a list, or one a line.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="File with a prompt on each line.")] = None,
    from_image: Annotated[
        Path | None, typer.Option(help="A PNG that a worker made, to make again.")
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
    preview_every: Annotated[int | None, typer.Option(help="Steps between two previews.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any field, as JSON; repeatable."),
    ] = None,
    task_id: Annotated[
        str | None,
        typer.Option(help="Id of a single task; submitting an id twice makes one task."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the tasks until they end.")] = False,
    out: Out = None,
    preview: Shown = Preview.AUTO,
    machine: Machine = False,
) -> None:
    """Submit tasks from a PROMPT, --request, --prompts (`-` is standard input) or --from-image.

    For a pixel-space model give none of them; use --set class_labels=3, or =null for no class.
    Flags and --set override the file. Prints the ids; with --wait then the images' URLs, with --out
    their files.
    """
    sources = [prompt, request, prompts, from_image]
    has_labels = any(each.startswith("class_labels=") for each in set_ or [])
    if sum(each is not None for each in sources) != 1 and not (has_labels and not any(sources)):
        what = "give one of PROMPT, --request, --prompts and --from-image"
        fail(f"{what}, or, for a pixel-space model, --set class_labels=3", INVALID)
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
            found = [request_sources.from_image_file(from_image)]
        else:
            found = [{} if prompt is None else {"prompt": prompt}]
        return request_sources.with_flags(found, given, set_ or [])

    found = or_exit(requests)
    ids = [task_id] if task_id is not None else None
    with client() as connected:
        handles = or_exit(lambda: connected.submit_many(found, ids))
        for handle in handles:
            print(json.dumps({"task_id": handle.task_id}) if machine else handle.task_id)
        sys.stdout.flush()
        if wait or out:
            output.follow(handles, out, preview, machine=machine)


@app.command()
def watch(
    task_id: str,
    *,
    out: Annotated[Path | None, typer.Option(help="Save the images in this folder.")] = None,
    preview: Shown = Preview.AUTO,
    machine: Machine = False,
) -> None:
    """Follow a task, submitted by anyone, until it ends."""
    with client() as connected:
        handle = or_exit(lambda: connected.handle(task_id))
        or_exit(handle.status)
        output.follow([handle], out, preview, machine=machine)


@app.command()
def cancel(task_id: str) -> None:
    """Request a task's cancellation; prints the status that it had."""
    with client() as connected:
        print(or_exit(lambda: connected.handle(task_id).cancel()) or "unknown")


@app.command()
def queue(*, machine: Machine = False) -> None:
    """Print how many messages wait, by model and priority, and what each worker does."""
    from worker.cli import health  # noqa: PLC0415  # imports Celery

    found = settings()
    queues = or_exit(lambda: health.depths(found))
    workers = or_exit(lambda: health.all_workers(found))
    if machine:
        shown = {name: asdict(worker) for name, worker in workers.items()}
        print(json.dumps({"queues": queues, "workers": shown}))
        return
    for model, lengths in queues.items():
        waiting = ", ".join(f"{count} of priority {each}" for each, count in lengths.items())
        print(f"{model}: {waiting or 'nothing waits'}")
    for name, worker in workers.items():
        running = " ".join(worker.running) or "nothing"
        print(printable(f"{name} ({worker.device}, {worker.refusal or 'well'}): {running}"))
    if not workers:
        print("no worker answers")


@dead.command("list")
def dead_list() -> None:
    """Print the dead letters, one a line: time, task, attempts and reason, separated by tabs."""
    with client() as connected:
        for each in or_exit(lambda: list(DeadLetters(connected))):
            at = each.at.isoformat(timespec="seconds").replace("+00:00", "Z")
            print(at, printable(each.task_id), each.attempt, ascii(each.reason)[1:-1], sep="\t")


@dead.command("replay")
def dead_replay(task_id: str) -> None:
    """Submit a dead letter's task again under a new id; print the id, delete the dead letter."""
    with client() as connected:
        new_id = or_exit(lambda: DeadLetters(connected).replay(task_id))
    print(new_id or fail(f"no dead letter of task {task_id}"))
