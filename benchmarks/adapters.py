"""Rows of different LoRA adapters: one UNet call for all of them, and the alternatives.

Times a call by row as the engine makes it, the same with peft's `adapter_names`, and a call for
each adapter; and counts, with the engine's own scheduler, how many calls of tasks with different
adapters are shared in either way.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import chart, model, process, record, report
from benchmarks.adapter_side import AdapterSide, save
from benchmarks.engine_calls import planned
from benchmarks.lora import RANK
from benchmarks.sides import Spread, alternate, ratio

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from benchmarks.record import Cell, Result

#: The ways by their names in a result.
WAYS = {
    "by_row": AdapterSide.by_row,
    "adapter_names": AdapterSide.by_names,
    "turns": AdapterSide.in_turns,
    "plain": AdapterSide.plain,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=16, help="of a call")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--tasks", type=int, default=16, help="whose calls are counted")
    parser.add_argument("--steps", type=int, default=25, help="of each of them, with SAG")
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    found: dict[int, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        chosen = stack.enter_context(model.chosen(arguments))
        machine = process.once("torch", record.machine, chosen.device)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        process.once("the files", save, chosen, folder, max(arguments.adapters))
        sides = {
            name: stack.enter_context(process.start(name, AdapterSide, chosen, folder)).remote(way)
            for name, way in WAYS.items()
        }
        for count in arguments.adapters:
            calls = [partial(side, arguments.rows, count) for side in sides.values()]
            turns = alternate(calls, arguments.repeats)
            found[count] = dict(zip(sides, turns, strict=True))
            print(_row(count, found[count], arguments))
    result = _result(found, chosen, machine, arguments)
    report.publish(result, _plot(result, found), arguments.out)


def _row(
    count: int, seconds: Mapping[str, list[float]], arguments: argparse.Namespace
) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"adapters": count}
    cells |= Spread.of([1000 * each for each in seconds["by_row"]]).cells("by_row_ms")
    for name in ("adapter_names", "turns"):
        cells |= ratio(seconds[name], seconds["by_row"]).cells(f"{name}_over_by_row")
    cells |= ratio(seconds["by_row"], seconds["plain"]).cells("by_row_over_plain")
    plan = partial(planned, ["sag"] * arguments.tasks, arguments.steps, arguments.rows)
    by_row = plan()
    mixed = [tasks for tasks in by_row if len({number % count for number in tasks}) > 1]
    cells["calls_by_row"] = len(by_row)
    cells["calls_turns"] = len(plan([str(task % count) for task in range(arguments.tasks)]))
    cells["mixed_share"] = record.rounded(len(mixed) / len(by_row))
    return cells


def _result(
    found: Mapping[int, Mapping[str, list[float]]],
    chosen: model.Model,
    machine: record.Machine,
    arguments: argparse.Namespace,
) -> Result:
    most = max(found)
    rows = [_row(count, seconds, arguments) for count, seconds in found.items()]
    names = ratio(found[most]["adapter_names"], found[most]["by_row"])
    turns = ratio(found[most]["turns"], found[most]["by_row"])
    return record.Result(
        name="adapters-sd15" if arguments.sd15 else "adapters",
        title="Rows of different LoRA adapters in one UNet call",
        headline=f"For {arguments.rows} rows of {most} adapters peft's adapter_names takes "
        f"{_shown(names)} times as long as the engine's call, a call for each adapter "
        f"{_shown(turns)} times; {arguments.tasks} tasks need {rows[-1]['calls_by_row']} calls in "
        f"place of {rows[-1]['calls_turns']}.",
        model=chosen.name,
        machine=machine,
        options=record.options(
            rows=arguments.rows, rank=RANK, repeats=arguments.repeats, tasks=arguments.tasks,
            steps=arguments.steps, dtype=chosen.alone_dtype, size_px=arguments.size_px,
        ),
        rows=rows,
    )  # fmt: skip


def _shown(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def _plot(result: Result, found: Mapping[int, Mapping[str, Sequence[float]]]) -> Figure:
    drawn, (axes,) = chart.figure(result)
    lines = {
        name: [Spread.of([1000 * each for each in seconds[name]]) for seconds in found.values()]
        for name in ("by_row", "turns", "adapter_names")
    }
    labels = [
        f"{ratio(seconds['turns'], seconds['by_row']).median:.2f} x" for seconds in found.values()
    ]
    chart.lines(axes, list(found), lines, labels)
    axes.set_xlabel("adapters in the rows")
    what = "ms of a processor" if result.machine.device == "cpu" else "ms"
    axes.set_ylabel(f"{what} for {result.options['rows']} rows")
    return drawn
