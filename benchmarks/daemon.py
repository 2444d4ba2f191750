"""What the daemon costs around its engine, and what is left of the engine's gain over upstream.

The same tasks go through a real `sag-worker run` (real Redis, real S3, the public client), through
the engine alone, and through a loop over upstream's pipeline, each in processes of its own. The
engine alone never has more of them at once than the daemon has slots. `--before` names another
checkout, whose daemon takes its turns beside the others. A second result has the processor time of
the worker process by thread.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from benchmarks import chart, model, process, record, report, service, tasks, thread_cpu
from benchmarks.engine_side import EngineSide
from benchmarks.sides import Spread, alternate, ratio
from benchmarks.turn import Turn
from benchmarks.upstream_side import UpstreamSide

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

    from benchmarks.record import Cell, Result
    from benchmarks.tasks import Task

SIDES = ("the bare engine", "the whole daemon", "upstream, a loop", "the daemon before")
#: Of `result.timings`; the engine's own wait is what is in `queued_s` there.
STAGES = ("queued_s", "load_s", "encode_s", "denoise_s", "decode_s", "upload_s", "total_s")


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--before", type=Path, help="a checkout whose daemon is measured, too")
    service.add_options(parser)
    tasks.add_options(parser)
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    with (
        model.chosen(arguments) as chosen,
        process.start("the engine", EngineSide, chosen) as engine,
        process.start("upstream", UpstreamSide, chosen) as upstream,
        service.servers() as servers,
        service.daemon(servers, chosen, arguments) as daemon,
        ExitStack() as stack,
    ):
        machine = process.once("torch", record.machine, chosen.device)
        sides: list[Callable[[Sequence[Task]], Turn]] = [
            partial(engine.remote(EngineSide.turn), at_once=arguments.slots),
            partial(_daemon, daemon),
            upstream.remote(UpstreamSide.loop),
        ]
        if arguments.before is not None:
            before = service.daemon(servers, chosen, arguments, arguments.before, database=1)
            sides.append(partial(_daemon, stack.enter_context(before)))
        for side in sides:
            side(tasks.make(1, arguments))  # builds the pipeline
        given = tasks.make(arguments.tasks, arguments)
        turns = alternate([partial(side, given) for side in sides], arguments.repeats)
    suffix = "-sd15" if arguments.sd15 else ""
    result = record.Result(
        name=f"daemon{suffix}",
        title=f"The whole daemon, its bare engine, and upstream, {arguments.tasks} tasks",
        headline=_headline(turns),
        model=chosen.name,
        machine=machine,
        options=service.described(arguments),
        rows=[_row(side, each, turns[2]) for side, each in zip(SIDES, turns, strict=False)],
    )
    report.publish(result, _plot(result, turns[:3]), arguments.out)
    daemons = dict(zip(("now", "before"), (turns[1], *turns[3:]), strict=False))
    threads = thread_cpu.result(result, f"daemon-threads{suffix}", daemons)
    report.publish(threads, thread_cpu.plot(threads, daemons), arguments.out)


def _headline(turns: Sequence[Sequence[Turn]]) -> str:
    engine, daemon, loop = map(_speeds, turns[:3])
    gain, share = ratio(daemon, loop), ratio(daemon, engine)
    cost_ms = 1000 * (1 / median(daemon) - 1 / median(engine))
    return (
        f"The daemon makes {gain.median:.2f} times as many images per second as a loop over "
        f"upstream's pipeline ({gain.low:.2f} to {gain.high:.2f} in {len(loop)} turns), and "
        f"{share.median:.3f} times as many as the bare engine ({share.low:.3f} to "
        f"{share.high:.3f}): Celery, events, PNG and S3 cost {cost_ms:.1f} ms an image."
    )


def _daemon(daemon: service.Daemon, given: Sequence[Task]) -> Turn:
    earlier, began_s = daemon.thread_times(), time.perf_counter()
    results = daemon.results(given)
    speed = len(given) / service.took_s(began_s)
    return Turn(
        speed,
        batch=mean(result.batch for result in results),
        stages={
            name: median(getattr(result.timings, name) for result in results) for name in STAGES
        },
        cpu_ms=daemon.thread_times().ms_an_image_since(earlier, len(given)),
    )


def _speeds(turns: Sequence[Turn]) -> list[float]:
    return [turn.images_per_s for turn in turns]


def _row(side: str, turns: Sequence[Turn], loop: Sequence[Turn]) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"side": side}
    cells |= Spread.of(_speeds(turns)).cells("images_per_s")
    cells |= ratio(_speeds(turns), _speeds(loop)).cells("times_upstream")
    for name in STAGES:
        spread = _stage(turns, name)
        cells[name] = None if spread is None else record.rounded(spread.median)
    batches = [turn.batch for turn in turns if turn.batch is not None]
    cells["jobs_in_a_step"] = record.rounded(median(batches)) if batches else None
    return cells


def _stage(turns: Sequence[Turn], name: str) -> Spread | None:
    """A stage's seconds over the turns; None where the side has no such stage."""
    seconds = [turn.stages[name] for turn in turns if name in turn.stages]
    return Spread.of(seconds) if seconds else None


def _plot(result: Result, turns: Sequence[Sequence[Turn]]) -> Figure:
    drawn, (speed, stage) = chart.figure(result, panels=2)
    sides = {side: [Spread.of(_speeds(each))] for side, each in zip(SIDES, turns, strict=False)}
    gain = ratio(_speeds(turns[1]), _speeds(turns[2])).median
    chart.bars(
        speed, [f"{result.options['tasks']} tasks"], sides, [f"daemon: {gain:.2f} x upstream"]
    )
    speed.set_ylabel("images per second")
    nothing = Spread(0, 0, 0)
    seconds = {
        side: [_stage(each, name) or nothing for name in STAGES[1:6]]
        for side, each in zip(SIDES[:2], turns, strict=False)
    }
    names = [name.removesuffix("_s") for name in STAGES[1:6]]
    chart.bars(stage, names, seconds, [""] * len(names))
    stage.set_ylabel("seconds of a task, median")
    return drawn
