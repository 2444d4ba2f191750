"""From the start of a process to its first picture: `sag-worker run` against a script by hand.

A process for each turn, on the CPU, with the weights in the page cache. The task waits in Redis
before the worker starts; it has no SAG, since the script's pipeline has none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from api_contracts import GenerationClient
from benchmarks import chart, record, report, service, tasks
from benchmarks.sides import Spread, alternate, ratio
from worker.config.models import SHIPPED_MODEL, ModelSpec

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

    from benchmarks.record import Cell, Result
    from benchmarks.tasks import Task

SIDES = ("a script by hand", "sag-worker run")
SCRIPT = Path(__file__).with_name("first_picture.py")
#: Longest wait for the first picture, in seconds.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Turn:
    """Seconds from the start of one process."""

    picture_s: float
    #: Processor time until the picture, of the process and its children.
    cpu_s: float
    #: None for the script.
    ready_s: float | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and how much."""
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--size-px", type=int, help="height and width; the model's own unless set")
    parser.add_argument("--sd15", action="store_true", help="Stable Diffusion 1.5's size")
    parser.add_argument("--scale", type=int, default=1, help="divides the widths of --sd15")
    parser.add_argument("--model", type=Path, help="a folder, in place of a built one")
    tasks.add_options(parser)
    parser.set_defaults(steps=2)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    machine = record.machine("cpu")
    task = replace(tasks.make(1, arguments)[0], sag_scale=0.0)
    with _model(arguments) as (name, folder), service.servers() as servers:
        sides = [partial(_script, folder, task, servers.folder)]
        sides.append(partial(_daemon, folder, task, servers))
        for side in sides:
            side()  # fills the page cache
        turns = alternate(sides, arguments.repeats)
    share = ratio(*([turn.picture_s for turn in each] for each in reversed(turns)))
    result = record.Result(
        name="coldstart-sd15" if arguments.sd15 else "coldstart",
        title="From the start of a process to its first picture",
        headline=f"`sag-worker run` takes {share.median:.2f} times as long as a script by hand "
        f"({share.low:.2f} to {share.high:.2f} in {arguments.repeats} turns).",
        model=name,
        machine=machine,
        options=record.options(
            steps=arguments.steps, size_px=arguments.size_px, repeats=arguments.repeats
        ),
        rows=[_row(side, each) for side, each in zip(SIDES, turns, strict=True)],
    )
    report.publish(result, _plot(result, turns), arguments.out)


@contextmanager
def _model(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Name and folder of the model, in float32."""
    if arguments.model is not None:
        yield arguments.model.name, arguments.model
    elif arguments.sd15:
        import torch  # noqa: PLC0415  # only this model needs it

        from benchmarks import sd15  # noqa: PLC0415  # as above

        name = "Stable Diffusion 1.5's configuration, random weights"
        with tempfile.TemporaryDirectory(prefix="sag-benchmark-") as folder:
            sd15.build(Path(folder), arguments.scale, torch.float32)
            yield name, Path(folder)
    else:
        yield "tiny-shapes", SHIPPED_MODEL


def _script(folder: Path, task: Task, scratch: Path) -> Turn:
    fields = {name: value for name, value in task.request().items() if name != "sag_scale"}
    out = scratch / "first.png"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(SCRIPT), str(folder), str(out), json.dumps(fields)]
    began_s = time.perf_counter()
    with (scratch / "script.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603  # a fixed command
        _, status, usage = os.wait4(process.pid, 0)
    took_s = time.perf_counter() - began_s
    process.returncode = status
    if not out.exists():
        message = f"the script made no picture: {(scratch / 'script.log').read_text()[-2000:]}"
        raise RuntimeError(message)
    return Turn(took_s, usage.ru_utime + usage.ru_stime)


def _daemon(folder: Path, task: Task, servers: service.Servers) -> Turn:
    spec = ModelSpec(path=str(folder), safety_checker=False)
    environment = {
        "SAG_BROKER_URL": servers.redis_url,
        "SAG_S3_ENDPOINT_URL": servers.s3.endpoint_url,
        "SAG_S3_BUCKET": service.BUCKET,
        "SAG_MODELS": json.dumps({"default": spec.model_dump(mode="json", exclude_defaults=True)}),
        "SAG_DEVICE": "cpu",
        "SAG_DRAIN_TIMEOUT_S": "1",
    }
    with GenerationClient(servers.redis_url) as client:
        handle = client.submit(task.request())
        name, command = f"daemon-{handle.task_id}", [sys.executable, "-m", "worker", "run"]
        began_s = time.perf_counter()
        with service.worker(servers, name, command, environment) as worker:
            ready_s = service.took_s(began_s)
            handle.result(timeout=PATIENCE_S)
            took_s = service.took_s(began_s)
            return Turn(took_s, _cpu_s(worker.process.pid), ready_s)


def _cpu_s(pid: int) -> float:
    """Processor time of a process and of all below it, in seconds."""
    parent = psutil.Process(pid)
    times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def _row(side: str, turns: Sequence[Turn]) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"side": side}
    ready_s = [turn.ready_s for turn in turns if turn.ready_s is not None]
    cells |= Spread.of(ready_s).cells("ready_s") if ready_s else {"ready_s": None}
    cells |= Spread.of([turn.picture_s for turn in turns]).cells("picture_s")
    return cells | Spread.of([turn.cpu_s for turn in turns]).cells("cpu_s")


def _plot(result: Result, turns: Sequence[Sequence[Turn]]) -> Figure:
    drawn, (axes,) = chart.figure(result)
    sides = {
        side: [Spread.of([turn.picture_s for turn in each]), Spread.of([t.cpu_s for t in each])]
        for side, each in zip(SIDES, turns, strict=True)
    }
    chart.bars(axes, ["first picture", "processor time until it"], sides, ["", ""])
    axes.set_ylabel("seconds")
    return drawn
