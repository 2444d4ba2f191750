"""The `sag-worker` commands of whoever runs workers; those of their callers are in `ask`."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from worker import logs
from worker.cli import client
from worker.cli.console import console, fail, or_exit, printable
from worker.cli.console import settings as read_settings
from worker.exit_codes import FAILED, INVALID

app = typer.Typer(
    name="sag-worker",
    help="Stable Diffusion with Self-Attention Guidance, served from a Celery queue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(client.app)


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
    settings = read_settings()
    logs.configure(settings.log_format)
    if settings.metrics_port is not None:
        # Before prometheus_client is imported, here and in the processes that this one starts.
        folder = tempfile.mkdtemp(prefix="sag-metrics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    from worker import metrics  # noqa: PLC0415  # see above
    from worker.supervisor import supervisor  # noqa: PLC0415  # see above

    if gpu and device not in (None, "auto"):
        fail("give --gpu or --device, not both", INVALID)
    chosen = device or settings.device
    try:
        environments = supervisor.worker_environments(chosen, gpu or [], workers)
        if settings.metrics_port is not None:
            metrics.serve(settings.metrics_port)
    except (ValueError, RuntimeError) as error:
        fail(str(error), INVALID)
    except OSError as error:
        fail(f"SAG_METRICS_PORT={settings.metrics_port}: {error}", INVALID)
    sys.exit(supervisor.run(settings, environments, work, "worker.cli.forkserver_preload"))


@app.command(hidden=True)
def work(name: str = "worker", owner: str | None = None) -> None:
    """Be one worker process, as `run` forks them."""
    from worker.app import work as be_worker  # noqa: PLC0415  # Celery's worker side

    sys.exit(be_worker(read_settings(), name, owner))


@app.command()
def health() -> None:
    """Ask this host's workers through the broker; status 0 when all that answer would work."""
    from worker.cli.health import answering  # noqa: PLC0415  # Celery's own side

    workers = or_exit(lambda: answering(read_settings()))
    if not workers:
        fail("no worker of this host answers")
    for name, refusal in workers.items():
        print(printable(f"{name}: {refusal or 'well'}"))
    if any(workers.values()):
        sys.exit(FAILED)


@app.command()
def doctor() -> None:
    """Look at Redis, S3, clocks, device, models and memory: what works, and how to fix the rest."""
    from worker.doctor.checks import run_checks  # noqa: PLC0415  # what only this command needs

    well = True
    for finding in run_checks(read_settings()):
        well &= finding.ok
        mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
        fix = "" if finding.ok else f"\n      fix: {finding.fix}"
        told = escape(printable(f"{finding.what}: {finding.found}") + fix)
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
    from worker.cli.demo import run_demo  # noqa: PLC0415  # what only this command needs

    sys.exit(run_demo(prompt, out, console))


def main() -> None:
    """The `sag-worker` command."""
    app()
