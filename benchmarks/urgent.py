"""A task of priority 0 and one of priority 5 that arrive when all slots are taken.

The engine alone counts UNet calls, with more rows waiting than a call takes: exact on any machine.
The whole daemon gives the seconds to the first progress event.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import chart, model, process, record, report, service, tasks
from benchmarks.arrival import ArrivalSide
from benchmarks.sides import Spread, alternate, ratio

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from api_contracts import TaskHandle
    from benchmarks.arrival import Arrival
    from benchmarks.record import Cell, Result
    from benchmarks.tasks import Task

#: Of the newcomers, the first is urgent.
PRIORITIES = (0, 5)
#: Longest wait for an event, in seconds.
EVENT_S = 600.0
#: First UNet call of the others in which a newcomer arrives; later turns arrive one call later
#: each, so in both passes.
FIRST_ARRIVAL = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    """How full the engine is."""
    parser.add_argument(
        "--urgent", action="store_true", help="priority 0 against 5 when all slots are taken"
    )
    parser.add_argument("--rows", type=int, default=8, help="with --urgent: rows of a UNet call")
    parser.add_argument(
        "--other-size-px", type=int, default=96, help="with --urgent: height of another size"
    )
    service.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    given = tasks.make(arguments.slots + 1, arguments)
    others, newcomer = [replace(task, priority=5) for task in given[:-1]], given[-1]
    newcomers = [
        replace(newcomer, priority=priority, height=height)
        for height in (newcomer.height, arguments.other_size_px)
        for priority in PRIORITIES
    ]
    with model.chosen(arguments) as chosen:
        machine = process.once("torch", record.machine, chosen.device)
        with process.start("the engine", ArrivalSide, chosen, arguments.rows) as engine:
            arrive = engine.remote(ArrivalSide.arrive)
            arrivals = [
                [arrive(others, each, FIRST_ARRIVAL + turn) for turn in range(arguments.repeats)]
                for each in newcomers
            ]
        with service.servers() as servers, service.daemon(servers, chosen, arguments) as daemon:
            daemon.results(tasks.make(1, arguments, steps=2))  # builds the pipeline
            waits = alternate(
                [
                    partial(_first_progress_s, daemon, others, each)
                    for each in newcomers[: len(PRIORITIES)]
                ],
                arguments.repeats,
            )
    result = record.Result(
        name="latency-urgent-sd15" if arguments.sd15 else "latency-urgent",
        title=f"A task that arrives when {arguments.slots} tasks of priority 5 take all slots",
        headline=_headline(arrivals, waits),
        model=chosen.name,
        machine=machine,
        options=record.options(
            **tasks.described(arguments),
            dtype=arguments.dtype,
            repeats=arguments.repeats,
            slots=arguments.slots,
            rows=arguments.rows,
            other_size_px=arguments.other_size_px,
            set=arguments.set,
        ),
        rows=[
            _row(each, arrivals[number], waits[number] if number < len(waits) else None)
            for number, each in enumerate(newcomers)
        ],
    )
    report.publish(result, _plot(result, arrivals, waits), arguments.out)


def _first_progress_s(daemon: service.Daemon, others: Sequence[Task], newcomer: Task) -> float:
    """Submit a newcomer when all others have made progress, then cancel all."""
    handles = [daemon.client.submit(task.request()) for task in others]
    for handle in handles:
        _wait_for_progress(handle)
    began_s = time.perf_counter()
    handles.append(daemon.client.submit(newcomer.request()))
    _wait_for_progress(handles[-1])
    first_s = service.took_s(began_s)
    for handle in handles:
        handle.cancel()
    for handle in handles:
        for _ in handle.events(timeout=EVENT_S):
            pass
    return first_s


def _wait_for_progress(handle: TaskHandle) -> None:
    for event in handle.events(timeout=EVENT_S):
        if event.type == "progress":
            return
    message = f"task {handle.task_id} ended without progress"
    raise RuntimeError(message)


def _headline(arrivals: Sequence[Sequence[Arrival]], waits: Sequence[Sequence[float]]) -> str:
    urgent = [each for number in (0, 2) for each in arrivals[number]]
    latest = max(each.to_first_call for each in urgent)
    pictures = [median(each.to_picture for each in arrivals[number]) for number in (0, 1)]
    own = median(each.own_calls for each in arrivals[0])
    faster = ratio(waits[1], waits[0])
    return (
        f"A task of priority 0 is in UNet call {latest} after its arrival at the latest, of the "
        f"size of the others and of another; its picture needs {own:g} calls and is there after "
        f"{pictures[0]:g}, with priority 5 after {pictures[1]:g}. Through the daemon a task of "
        f"priority 5 waits {faster.median:.1f} times as long for its first progress event "
        f"({faster.low:.1f} to {faster.high:.1f} in {len(waits[0])} turns)."
    )


def _row(
    newcomer: Task, arrivals: Sequence[Arrival], waits: Sequence[float] | None
) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"priority": newcomer.priority, "height_px": newcomer.height}
    for name in ("to_first_call", "to_first_step", "to_picture", "own_calls"):
        cells |= Spread.of([getattr(each, name) for each in arrivals]).cells(f"calls_{name}")
    spread = None if waits is None else Spread.of(waits).cells("first_progress_s")
    names = ("first_progress_s", "first_progress_s_low", "first_progress_s_high")
    return cells | (spread or dict.fromkeys(names))


def _plot(
    result: Result, arrivals: Sequence[Sequence[Arrival]], waits: Sequence[Sequence[float]]
) -> Figure:
    drawn, (calls, seconds) = chart.figure(result, panels=2)
    names = [f"priority {each}" for each in PRIORITIES]
    counted = {
        name: [
            Spread.of([getattr(each, column) for each in arrivals[number]])
            for column in ("to_first_step", "to_picture")
        ]
        for number, name in enumerate(names)
    }
    chart.bars(calls, ["to its first step", "to its picture"], counted, ["", ""])
    calls.set_ylabel("UNet calls from its arrival")
    measured = {name: [Spread.of(each)] for name, each in zip(names, waits, strict=True)}
    chart.bars(seconds, ["to its first progress event"], measured, [""])
    seconds.set_ylabel("seconds")
    return drawn
