"""How long a task waits that arrives when others are half-way: engine, and first come first served.

Half-way is when half of the others' steps are done, all of them counted together. First come first
served is upstream's pipeline, one task after the other, run for real: the newcomer goes last. Each
side has a process of its own.

With --urgent: a task of priority 0 that arrives when all slots are taken, see `urgent`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks import chart, model, process, record, report, tasks, urgent
from benchmarks.engine_side import EngineSide
from benchmarks.scene import Scene, Wait
from benchmarks.sides import Spread, alternate, ratio
from benchmarks.upstream_side import UpstreamSide

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from concurrent.futures import Future

    from matplotlib.figure import Figure

    from benchmarks.record import Cell, Result
    from benchmarks.tasks import Task
    from worker.engine.jobs.job import JobResult
    from worker.job_control import Step

SIDES = ("the engine", "first come, first served")


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--others", type=int, default=8, help="tasks that were there before")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    urgent.add_options(parser)
    tasks.add_options(parser)
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    if arguments.urgent:
        urgent.run(arguments)
        return
    with (
        model.chosen(arguments) as chosen,
        process.start("the engine", EngineSide, chosen) as engine,
        process.start("upstream", UpstreamSide, chosen) as upstream,
    ):
        machine = process.once("torch", record.machine, chosen.device)
        sides = [engine.remote(_engine), upstream.remote(_queue)]
        for side in sides:
            side(tasks.make(arguments.others + 1, arguments, steps=2))
        given = tasks.make(arguments.others + 1, arguments)
        waits = alternate([partial(side, given) for side in sides], arguments.repeats)
    first = _ratio(waits, "first_step_s")
    end = _ratio(waits, "end_s")
    result = record.Result(
        name="latency-sd15" if arguments.sd15 else "latency",
        title=f"A task that arrives when {arguments.others} others are half-way",
        headline=f"Queued first come, first served, it waits {first.median:.2f} times as long for "
        f"its first step as in the engine ({first.low:.2f} to {first.high:.2f} in "
        f"{arguments.repeats} turns), and {end.median:.2f} times as long for its picture "
        f"({end.low:.2f} to {end.high:.2f}).",
        model=chosen.name,
        machine=machine,
        options=record.options(
            **tasks.described(arguments), dtype=arguments.dtype, repeats=arguments.repeats
        ),
        rows=[_row(side, each) for side, each in zip(SIDES, waits, strict=True)],
    )
    report.publish(result, _plot(result, waits, [first, end]), arguments.out)


def _engine(engine: EngineSide, given: Sequence[Task]) -> Wait:
    """All but the last are submitted at once, the last when they are half-way."""
    *others, newcomer = given
    scene = Scene(others)

    def ended(future: Future[JobResult]) -> None:
        scene.other_ended(failed=future.exception() is not None)

    futures = []
    for other in others:
        futures.append(engine.submit(other, partial(_other_stepped, scene, other.seed)))
        futures[-1].add_done_callback(ended)
    scene.half_way.wait()
    scene.arrive()
    last = engine.submit(newcomer, lambda _: scene.stepped())
    last.add_done_callback(lambda _: scene.ended())
    for future in (*futures, last):
        future.result()
    return scene.wait()


def _other_stepped(scene: Scene, seed: int, _: Step) -> None:
    scene.other_stepped(seed)


def _queue(upstream: UpstreamSide, given: Sequence[Task]) -> Wait:
    """One after the other; the last arrives on the way, but its turn comes at the end."""
    *others, newcomer = given
    scene = Scene(others)

    def stepped(seed: int) -> None:
        scene.other_stepped(seed)
        if scene.half_way.is_set():
            scene.arrive()

    for other in others:
        upstream.pictures([other], partial(stepped, other.seed))
        scene.other_ended()
    upstream.pictures([newcomer], scene.stepped)
    scene.ended()
    return scene.wait()


def _row(side: str, waits: Sequence[Wait]) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"side": side}
    for name in ("first_step_s", "end_s", "others_end_s"):
        cells |= _spread(waits, name).cells(name)
    for name in ("steps_of_all_others_before", "steps_of_one_other_before"):
        cells[name] = _spread(waits, name).median
    return cells


def _spread(waits: Sequence[Wait], name: str) -> Spread:
    return Spread.of([getattr(wait, name) for wait in waits])


def _ratio(waits: Sequence[Sequence[Wait]], name: str) -> Spread:
    """First come first served over the engine."""
    engine, queue = ([getattr(wait, name) for wait in each] for each in waits)
    return ratio(queue, engine)


def _plot(result: Result, waits: Sequence[Sequence[Wait]], ratios: Sequence[Spread]) -> Figure:
    drawn, (axes,) = chart.figure(result)
    sides = {
        side: [_spread(each, name) for name in ("first_step_s", "end_s")]
        for side, each in zip(SIDES, waits, strict=True)
    }
    labels = [f"{each.median:.2f} x" for each in ratios]
    chart.bars(axes, ["to its first step", "to its picture"], sides, labels)
    axes.set_ylabel("seconds from its arrival")
    return drawn
