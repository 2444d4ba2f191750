"""What the daemon costs around its engine: Celery, record, events, PNG and S3.

The same tasks go through a real `sag-worker run` (real Redis, real S3, the public client) and
through the engine alone in this process, never more of them at once than the daemon has slots.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import bare, chart, model, record, report, service, tasks
from benchmarks.sides import Spread, alternate, ratio

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from benchmarks.bare import BareEngine
    from benchmarks.record import Cell, Result
    from benchmarks.tasks import Task

SIDES = ("the bare engine", "the whole daemon")
#: Of `result.timings`; the engine's own wait is what is in `queued_s` there.
STAGES = ("queued_s", "load_s", "encode_s", "denoise_s", "decode_s", "upload_s", "total_s")


@dataclass(frozen=True)
class Turn:
    """One side's turn: its speed, and the median of the tasks for each stage that it has."""

    images_per_s: float
    stages: dict[str, float]
    #: Mean number of jobs in a step.
    batch: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    service.add_options(parser)
    tasks.add_options(parser)
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    with (
        model.chosen(arguments) as chosen,
        bare.engine(chosen) as engine,
        service.servers() as servers,
        service.daemon(servers, chosen, arguments) as daemon,
    ):
        machine = record.machine(chosen.device)
        for side in (partial(_engine, engine, arguments.slots), partial(_daemon, daemon)):
            side(tasks.make(1, arguments))  # builds the pipeline
        given = tasks.make(arguments.tasks, arguments)
        sides = [partial(_engine, engine, arguments.slots, given), partial(_daemon, daemon, given)]
        turns = alternate(sides, arguments.repeats)
    speeds = [[turn.images_per_s for turn in each] for each in turns]
    share = ratio(speeds[1], speeds[0])
    cost_ms = 1000 * (1 / median(speeds[1]) - 1 / median(speeds[0]))
    result = record.Result(
        name="daemon-sd15" if arguments.sd15 else "daemon",
        title=f"The whole daemon against its bare engine, {arguments.tasks} tasks",
        headline=f"The daemon makes {share.median:.3f} times as many images per second as the bare "
        f"engine ({share.low:.3f} to {share.high:.3f} in {arguments.repeats} turns): Celery, "
        f"events, PNG and S3 cost {cost_ms:.1f} ms an image.",
        model=chosen.name,
        machine=machine,
        options=service.described(arguments),
        rows=[_row(side, each) for side, each in zip(SIDES, turns, strict=True)],
    )
    report.publish(result, _plot(result, turns, share), arguments.out)


def _engine(engine: BareEngine, slots: int, given: Sequence[Task]) -> Turn:
    began_s = time.perf_counter()
    results = engine.results(given, at_once=slots)
    speed = len(given) / service.took_s(began_s)
    timings = [result.timing for result in results]
    names = {"queued_s": "wait_s"} | {name: name for name in STAGES[1:5]}
    stages = {
        stage: median(getattr(timing, name) for timing in timings) for stage, name in names.items()
    }
    return Turn(speed, stages, sum(result.batch for result in results) / len(results))


def _daemon(daemon: service.Daemon, given: Sequence[Task]) -> Turn:
    began_s = time.perf_counter()
    results = daemon.results(given)
    speed = len(given) / service.took_s(began_s)
    stages = {name: median(getattr(result.timings, name) for result in results) for name in STAGES}
    return Turn(speed, stages, sum(result.batch for result in results) / len(results))


def _row(side: str, turns: Sequence[Turn]) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"side": side}
    cells |= Spread.of([turn.images_per_s for turn in turns]).cells("images_per_s")
    for name in STAGES:
        spread = _stage(turns, name)
        cells[name] = None if spread is None else record.rounded(spread.median)
    cells["jobs_in_a_step"] = record.rounded(median(turn.batch for turn in turns))
    return cells


def _stage(turns: Sequence[Turn], name: str) -> Spread | None:
    """A stage's seconds over the turns; None where the side has no such stage."""
    seconds = [turn.stages[name] for turn in turns if name in turn.stages]
    return Spread.of(seconds) if seconds else None


def _plot(result: Result, turns: Sequence[Sequence[Turn]], share: Spread) -> Figure:
    drawn, (speed, stage) = chart.figure(result, panels=2)
    sides = {
        side: [Spread.of([turn.images_per_s for turn in each])]
        for side, each in zip(SIDES, turns, strict=True)
    }
    chart.bars(speed, [f"{result.options['tasks']} tasks"], sides, [f"{share.median:.3f} x"])
    speed.set_ylabel("images per second")
    nothing = Spread(0, 0, 0)
    seconds = {
        side: [_stage(each, name) or nothing for name in STAGES[1:6]]
        for side, each in zip(SIDES, turns, strict=True)
    }
    names = [name.removesuffix("_s") for name in STAGES[1:6]]
    chart.bars(stage, names, seconds, [""] * len(names))
    stage.set_ylabel("seconds of a task, median")
    return drawn
