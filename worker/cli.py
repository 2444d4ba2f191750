"""The `sag-worker` commands: arguments, what they print, exit statuses."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.markup import escape

from api_contracts import (
    GenerationClient,
    GenerationError,
    InvalidRequest,
    TaskHandle,
)
from worker import log, progress
from worker.dead import DeadLetters
from worker.settings import Settings

app = typer.Typer(
    name="sag-worker",
    help="Stable Diffusion with Self-Attention Guidance, served from a Celery queue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
dead = typer.Typer(help="Tasks that no worker could finish.", no_args_is_help=True)
app.add_typer(dead, name="dead")
#: For people; results and identifiers go to standard output.
console = Console(stderr=True)

FAILED, INVALID, UNAVAILABLE = 1, 2, 3


@app.command()
def run(
    gpu: Annotated[
        list[int] | None, typer.Option(help="Index of a GPU; again for more. All unless given.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="`cpu`, `cuda:1` or `auto`; `SAG_DEVICE` unless given.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes for each device.")] = 1,
) -> None:
    """Start the worker: one process for each GPU, or one on the CPU."""
    settings = _settings()
    log.configure(settings.log_format)
    if settings.metrics_port is not None:
        # Before prometheus_client is imported, here and in the processes that this one starts.
        folder = tempfile.mkdtemp(prefix="sag-metrics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    from worker import metrics, supervisor  # noqa: PLC0415  # see above

    if gpu and device not in (None, "auto"):
        _fail("give --gpu or --device, not both", INVALID)
    chosen = device or settings.device
    try:
        children = supervisor.environments(chosen, gpu or [], workers)
        if settings.metrics_port is not None:
            metrics.serve(settings.metrics_port)
    except (ValueError, RuntimeError) as error:
        _fail(str(error), INVALID)
    except OSError as error:
        _fail(f"SAG_METRICS_PORT={settings.metrics_port}: {error}", INVALID)
    sys.exit(supervisor.run(settings, children, work))


@app.command(hidden=True)
def work(name: str = "worker", owner: str | None = None, parent: int | None = None) -> None:
    """Be one worker process, as `run` forks them; end when process `parent` does."""
    from worker.app import work as be_worker  # noqa: PLC0415  # Celery's worker side

    if parent is not None:
        from worker.child import end_with_parent  # noqa: PLC0415  # as above

        end_with_parent(parent)
    sys.exit(be_worker(_settings(), name, owner))


@app.command()
def submit(  # noqa: PLR0913  # a flag for each thing that people set by hand
    prompt: str,
    *,
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
    task_id: str | None = None,
    wait: Annotated[bool, typer.Option(help="Follow the task to its end.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures; implies --wait.")
    ] = None,
) -> None:
    """Submit a task. Prints its id, then with --wait the pictures' URLs, with --out the files."""
    request = {
        "prompt": prompt,
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
    }
    given = {name: value for name, value in request.items() if value is not None}
    with _client() as client:
        handle = _told(lambda: client.submit(given, task_id))
        print(handle.task_id, flush=True)
        if wait or out:
            _follow(handle, out)


@app.command()
def watch(
    task_id: str,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures.")] = None,
) -> None:
    """Follow a task to its end, whoever submitted it."""
    with _client() as client:
        handle = _told(lambda: client.handle(task_id))
        _told(handle.status)
        _follow(handle, out)


@app.command()
def cancel(task_id: str) -> None:
    """Ask for a task to end; prints the status that it had."""
    with _client() as client:
        print(_told(lambda: client.handle(task_id).cancel()) or "unknown")


@dead.command("list")
def dead_list() -> None:
    """Print the dead letters, one a line: when, task, attempts, reason; separated by tabs."""
    with _client() as client:
        for each in _told(lambda: list(DeadLetters(client))):
            at = each.at.isoformat(timespec="seconds").replace("+00:00", "Z")
            print(at, each.task_id, each.attempt, ascii(each.reason)[1:-1], sep="\t")


@dead.command("replay")
def dead_replay(task_id: str) -> None:
    """Submit a dead task again, under a new id, which is printed; its letter is removed."""
    with _client() as client:
        new_id = _told(lambda: DeadLetters(client).replay(task_id))
    print(new_id or _fail(f"no dead letter of task {task_id}"))


@app.command()
def health() -> None:
    """Ask this host's workers through the broker; status 0 when all that answer would work."""
    from worker.health import answering  # noqa: PLC0415  # Celery's own side

    workers = _told(lambda: answering(_settings()))
    if not workers:
        _fail("no worker of this host answers")
    for name, refusal in workers.items():
        print(f"{name}: {refusal or 'well'}")
    if any(workers.values()):
        sys.exit(FAILED)


@app.command()
def doctor() -> None:
    """Look at Redis, S3, the device and the models; say what works and how to fix the rest."""
    from worker.health import examine  # noqa: PLC0415  # what only this command needs

    well = True
    for finding in examine(_settings()):
        well &= finding.ok
        mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
        fix = "" if finding.ok else f"\n      fix: {finding.fix}"
        told = escape(f"{finding.what}: {finding.found}{fix}")
        console.print(f"{mark} {told}", highlight=False, soft_wrap=True)
    sys.exit(0 if well else FAILED)


@app.command()
def demo(
    prompt: Annotated[
        str | None, typer.Option(help="One picture of this; several unless given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo-output"),
) -> None:
    """Start Redis, S3 and a worker on this machine, make pictures, stop it all."""
    from worker.demo import run_demo  # noqa: PLC0415  # what only this command needs

    sys.exit(run_demo(prompt, out, console))


def _follow(handle: TaskHandle, out: Path | None) -> None:
    result = _told(lambda: progress.follow([handle], console)[0])
    if isinstance(result, GenerationError):
        _fail(str(result))
    for image in result.images:
        if out:
            print(_told(lambda image=image: progress.save(image, handle.task_id, out)))
        else:
            print(image.url or image.key)


def _told(call: Any) -> Any:  # noqa: ANN401  # passes through what the call gives
    """Turn the client's errors into a message and an exit status."""
    try:
        return call()
    except InvalidRequest as error:
        for fault in error.faults:
            told = f"{escape(fault.what)} [dim](limit: {escape(str(fault.limit))})[/]"
            console.print(f"[red]{escape(fault.where)}[/]: {told}", soft_wrap=True)
        sys.exit(INVALID)
    except GenerationError as error:
        _fail(f"{type(error).__name__}: {error}", UNAVAILABLE)


def _settings() -> Settings:
    try:
        return Settings()
    except SettingsError as error:
        _fail(f"{error}; its value is not the JSON that it should be", INVALID)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            first, *rest = map(str, detail["loc"] or ("models",))
            name = ".".join(["SAG_" + first.upper(), *rest])
            console.print(f"[red]{escape(name)}[/]: {escape(detail['msg'])}", soft_wrap=True)
        sys.exit(INVALID)


def _client() -> GenerationClient:
    settings = _settings()
    return GenerationClient(
        settings.broker_url.get_secret_value(),
        settings.namespace,
        events_url=settings.events.get_secret_value(),
    )


def _fail(message: str, status: int = FAILED) -> NoReturn:
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)


def main() -> None:
    """The `sag-worker` command."""
    app()
