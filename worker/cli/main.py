"""The `sag-worker` commands for operators; those for callers are in `client`."""

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
from worker.exit_codes import FAILED, INVALID, UNAVAILABLE

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
        list[int] | None,
        typer.Option(help="Index of a GPU as nvidia-smi lists it; repeatable. Default: all."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="`cpu`, `cuda:1` or `auto`. Default: `SAG_DEVICE`.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes for each device.")] = 1,
) -> None:
    """Run workers: one process for each GPU or MIG instance, or one on the CPU."""
    settings = read_settings()
    logs.configure(settings.log_format)
    if settings.metrics_port is not None:
        # Set before prometheus_client is imported, here and in the worker processes.
        folder = tempfile.mkdtemp(prefix="sag-metrics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    from worker import devices, metrics  # noqa: PLC0415  # see above
    from worker.engine.loading.compiler import require_compiler  # noqa: PLC0415  # only for this command
    from worker.supervisor import supervisor  # noqa: PLC0415  # see above

    if gpu and device not in (None, "auto"):
        fail("give --gpu or --device, not both", INVALID)
    chosen = device or settings.device
    try:
        devices.use_pci_order("auto" if gpu else chosen)
        environments = supervisor.worker_environments(chosen, gpu or [], workers)
        if settings.compile:
            for each in environments.values():
                require_compiler(each["SAG_DEVICE"])
        if settings.metrics_port is not None:
            metrics.serve(settings.metrics_port)
    except (ValueError, RuntimeError) as error:
        fail(str(error), INVALID)
    except OSError as error:
        fail(f"SAG_METRICS_PORT={settings.metrics_port}: {error}", INVALID)
    sys.exit(supervisor.run(settings, environments, work, "worker.cli.forkserver_preload"))


@app.command(hidden=True)
def work(name: str = "worker", owner: str | None = None) -> None:
    """Run one worker process in this process, as `run` does in each that it forks."""
    from worker.app import work as run_worker  # noqa: PLC0415  # imports Celery's worker side

    sys.exit(run_worker(read_settings(), name, owner))


@app.command()
def health(
    *,
    alive: Annotated[
        bool,
        typer.Option(
            "--alive",
            help="Status 0 also when they answer that they take no tasks, or Redis is away."
            " For probes that restart what fails.",
        ),
    ] = False,
) -> None:
    """Ask this host's workers through the broker; status 0 when all take tasks."""
    from worker.cli.health import host_workers  # noqa: PLC0415  # imports Celery

    workers = or_exit(
        lambda: host_workers(read_settings()), unavailable=0 if alive else UNAVAILABLE
    )
    if not workers:
        fail("no worker of this host answers")
    for name, worker in workers.items():
        print(printable(f"{name}: {'; '.join([worker.refusal or 'well', *worker.notices])}"))
    if any(not worker.answers if alive else worker.refusal for worker in workers.values()):
        sys.exit(FAILED)


@app.command()
def exporter(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104  # other machines ask
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 9808,
) -> None:
    """Serve queue and pool, read from Redis: /metrics for Prometheus, /status for autoscalers."""
    settings = read_settings()
    logs.configure(settings.log_format)
    from worker.exporter import server  # noqa: PLC0415  # only for this command

    try:
        server.run(settings, host, port)
    except OSError as error:
        fail(f"can't listen on {host} port {port}: {error}", INVALID)


@app.command()
def doctor() -> None:
    """Check Redis, S3, clocks, device, models and memory, and say how to fix what fails."""
    from worker.doctor.checks import run_checks  # noqa: PLC0415  # only for this command

    all_ok = True
    for finding in run_checks(read_settings()):
        all_ok &= finding.ok
        mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
        fix = "" if finding.ok else f"\n      fix: {finding.fix}"
        text = escape(printable(f"{finding.what}: {finding.found}") + fix)
        console.print(f"{mark} {text}", highlight=False, soft_wrap=True)
    sys.exit(0 if all_ok else FAILED)


@app.command()
def demo(
    prompt: Annotated[
        str | None, typer.Option(help="Make one image of this. Default: several.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("demo-output"),
) -> None:
    """Start Redis, S3 and a worker on this machine, make images, and stop everything."""
    from worker.cli.demo import run_demo  # noqa: PLC0415  # only for this command

    sys.exit(run_demo(prompt, out, console))


def main() -> None:
    """Run the `sag-worker` command."""
    app()
