"""Images per second against the number of waiting tasks: the engine, and upstream's own loop.

Both sides get the same tasks from the same model folder, and decode to PIL images. They take turns,
each in a process of its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import chart, model, process, record, report, tasks
from benchmarks.engine_side import EngineSide
from benchmarks.sides import Spread, alternate, ratio
from benchmarks.upstream_side import UpstreamSide

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.figure import Figure

    from benchmarks.model import Model
    from benchmarks.record import Cell, Result
    from benchmarks.tasks import Task
    from benchmarks.turn import Turn

    #: Sides by their names in `SIDES`.
    Turns = Mapping[str, Callable[[Sequence[Task]], Turn]]

#: Steps of the untimed run before, enough to meet every size of call.
WARM_STEPS = 2
SIDES = {
    "engine": "the engine",
    "engine_float32": "the engine in float32",
    "loop": "upstream, a loop",
    "one_call": "upstream, one call",
}


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
        if "engine_float32" in self.turns:
            against = ratio(self.speeds("engine_float32"), self.speeds("loop"))
            cells |= against.cells("ratio_float32")
        last = {side: turns[-1] for side, turns in self.turns.items()}
        cells["jobs_in_a_step"] = last["engine"].batch
        host_ms = [
            turn.host_ms_a_round
            for turn in self.turns["engine"]
            if turn.host_ms_a_round is not None
        ]
        cells["host_ms_a_round"] = record.rounded(median(host_ms)) if host_ms else None
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
    parser.add_argument(
        "--float32", action="store_true", help="also the engine in float32, against the same loop"
    )
    parser.add_argument(
        "--samplers",
        nargs="+",
        metavar="NAME",
        help="schedulers of the engine's tasks, in turn; the model's own unless set. Upstream, "
        "which does not run them all, keeps the model's own",
    )
    tasks.add_options(parser)
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    with ExitStack() as stack:
        chosen = stack.enter_context(model.chosen(arguments))
        machine = process.once("torch", record.machine, chosen.device)
        engine = stack.enter_context(process.start("the engine", EngineSide, chosen))
        loop = stack.enter_context(process.start("upstream's loop", UpstreamSide, chosen))
        sides: dict[str, Callable[[Sequence[Task]], Turn]] = {
            "engine": _sampled(engine, arguments),
            "loop": loop.remote(UpstreamSide.loop),
        }
        if arguments.float32:
            full = replace(chosen, engine_dtype="float32")
            other = stack.enter_context(process.start("the engine in float32", EngineSide, full))
            sides["engine_float32"] = _sampled(other, arguments)
        if arguments.one_call:
            one = stack.enter_context(process.start("upstream's one call", UpstreamSide, chosen))
            sides["one_call"] = one.remote(UpstreamSide.one_call)
        points = [_point(sides, count, arguments) for count in arguments.tasks]
        options = record.options(
            **tasks.described(arguments),
            samplers=arguments.samplers,
            dtype=f"{arguments.dtype} ({engine.remote(EngineSide.unet_dtype)()})",
            repeats=arguments.repeats,
        )
    name = "throughput-sd15" if arguments.sd15 else "throughput"
    result = _result(name, points, chosen, machine, options)
    report.publish(result, _plot(result, points), arguments.out)


def _point(sides: Turns, count: int, arguments: argparse.Namespace) -> Point:
    """The sides in turns, after a short untimed run of each at the same sizes."""
    for side in sides.values():
        side(tasks.make(count, arguments, steps=WARM_STEPS))
    given = tasks.make(count, arguments)
    turns = alternate([partial(side, given) for side in sides.values()], arguments.repeats)
    point = Point(count, dict(zip(sides, turns, strict=True)))
    print(point.row())
    return point


def _sampled(
    engine: process.Side[EngineSide], arguments: argparse.Namespace
) -> Callable[[Sequence[Task]], Turn]:
    """A turn of an engine, its tasks with the schedulers of `--samplers` one after another."""
    names, turn = arguments.samplers or [None], engine.remote(EngineSide.turn)

    def sampled(given: Sequence[Task]) -> Turn:
        return turn([
            replace(task, scheduler=names[number % len(names)]) for number, task in enumerate(given)
        ])  # fmt: skip

    return sampled


def _difference(one: Any, other: Any) -> float:  # noqa: ANN401  # images
    """Mean absolute difference of two pictures' values, of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def _result(
    name: str,
    points: Sequence[Point],
    chosen: Model,
    machine: record.Machine,
    options: dict[str, Cell],
) -> Result:
    most = max(points, key=lambda point: point.tasks)
    against = ratio(most.speeds("engine"), most.speeds("loop"))
    return record.Result(
        name=name,
        title="Images per second against waiting tasks",
        headline=f"With {most.tasks} waiting tasks the engine makes {against.median:.2f} times as "
        f"many images per second as a loop over upstream's pipeline ({against.low:.2f} to "
        f"{against.high:.2f} in {options['repeats']} turns).",
        model=chosen.name,
        machine=machine,
        options=options,
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
