"""Images per second against the number of waiting tasks: the engine, and upstream's own loop.

Both sides get the same tasks from the same model folder, and decode to PIL images. They take turns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import bare, chart, model, record, report, tasks, upstream
from benchmarks.sides import Spread, alternate, ratio

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from benchmarks.bare import BareEngine
    from benchmarks.model import Model
    from benchmarks.record import Cell, Result
    from benchmarks.tasks import Task

#: Steps of the untimed run before, enough to meet every size of call.
WARM_STEPS = 2
SIDES = {"engine": "the engine", "loop": "upstream, a loop", "one_call": "upstream, one call"}


@dataclass(frozen=True)
class Turn:
    """One side's pictures, and how fast they came."""

    images_per_s: float
    images: list[Any]
    #: Mean number of jobs in a step; None for upstream.
    batch: float | None


@dataclass(frozen=True)
class Point:
    """The sides at one number of tasks, each side's turns by its name."""

    tasks: int
    turns: dict[str, list[Turn]]

    def speeds(self, side: str) -> list[float]:
        """Images per second of each turn."""
        return [turn.images_per_s for turn in self.turns[side]]

    def row(self) -> dict[str, Cell]:
        """As a row of the result."""
        cells: dict[str, Cell] = {"tasks": self.tasks}
        for side in self.turns:
            cells |= Spread.of(self.speeds(side)).cells(f"{side}_images_per_s")
        cells |= ratio(self.speeds("engine"), self.speeds("loop")).cells("ratio")
        last = {side: turns[-1] for side, turns in self.turns.items()}
        cells["jobs_in_a_step"] = last["engine"].batch
        pairs = zip(last["engine"].images, last["loop"].images, strict=True)
        cells["difference_of_255"] = record.rounded(mean(_difference(*pair) for pair in pairs))
        return cells


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument(
        "--one-call", action="store_true", help="also upstream given all prompts in one call"
    )
    tasks.add_options(parser)
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    with model.chosen(arguments) as chosen, bare.engine(chosen) as engine:
        pipeline = upstream.load(chosen)
        machine = record.machine(chosen.device)
        points = [_point(engine, pipeline, count, arguments) for count in arguments.tasks]
        result = _result(points, chosen, machine, arguments)
    report.publish(result, _plot(result, points), arguments.out)


def _point(engine: BareEngine, pipeline: Any, count: int, arguments: argparse.Namespace) -> Point:  # noqa: ANN401  # a diffusers pipeline
    """The sides in turns, after a short untimed run of each at the same sizes."""
    sides = {"engine": partial(_engine, engine), "loop": partial(_loop, pipeline)}
    if arguments.one_call:
        sides["one_call"] = partial(_one_call, pipeline)
    for side in sides.values():
        side(tasks.make(count, arguments, steps=WARM_STEPS))
    given = tasks.make(count, arguments)
    turns = alternate([partial(side, given) for side in sides.values()], arguments.repeats)
    point = Point(count, dict(zip(sides, turns, strict=True)))
    print(point.row())
    return point


def _engine(engine: BareEngine, given: Sequence[Task]) -> Turn:
    began_s = time.perf_counter()
    results = engine.results(given)
    speed = len(given) / (time.perf_counter() - began_s)
    images = [result.images[0].pixels for result in results]
    return Turn(speed, images, record.rounded(mean(result.batch for result in results)))


def _loop(pipeline: Any, given: Sequence[Task]) -> Turn:  # noqa: ANN401  # a diffusers pipeline
    began_s = time.perf_counter()
    images = [upstream.pictures(pipeline, [task])[0] for task in given]
    return Turn(len(given) / (time.perf_counter() - began_s), images, None)


def _one_call(pipeline: Any, given: Sequence[Task]) -> Turn:  # noqa: ANN401  # a diffusers pipeline
    began_s = time.perf_counter()
    images = upstream.pictures(pipeline, given)
    return Turn(len(given) / (time.perf_counter() - began_s), images, None)


def _difference(one: Any, other: Any) -> float:  # noqa: ANN401  # images
    """Mean absolute difference of two pictures' values, of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def _result(
    points: Sequence[Point], chosen: Model, machine: record.Machine, arguments: argparse.Namespace
) -> Result:
    most = max(points, key=lambda point: point.tasks)
    against = ratio(most.speeds("engine"), most.speeds("loop"))
    name = "throughput-sd15" if arguments.sd15 else "throughput"
    return record.Result(
        name=name,
        title="Images per second against waiting tasks",
        headline=f"With {most.tasks} waiting tasks the engine makes {against.median:.2f} times as "
        f"many images per second as a loop over upstream's pipeline ({against.low:.2f} to "
        f"{against.high:.2f} in {arguments.repeats} turns).",
        model=chosen.name,
        machine=machine,
        options=record.options(**tasks.described(arguments), repeats=arguments.repeats),
        rows=[point.row() for point in points],
    )


def _plot(result: Result, points: Sequence[Point]) -> Figure:
    drawn, (axes,) = chart.figure(result)
    sides = {
        SIDES[side]: [Spread.of(point.speeds(side)) for point in points] for side in points[0].turns
    }
    ratios = [ratio(point.speeds("engine"), point.speeds("loop")).median for point in points]
    counts = [point.tasks for point in points]
    chart.lines(axes, counts, sides, [f"{each:.2f} x" for each in ratios])
    axes.set_xlabel("waiting tasks")
    axes.set_ylabel("images per second")
    return drawn
