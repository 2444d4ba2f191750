"""A step of 1, 4 and 16 tasks with no second guidance, SAG, PAG and SEG.

Calls and rows are exact. Each guidance has a process of its own; they take turns.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import chart, model, process, record, report
from benchmarks.engine_calls import PASSES, last_first_step, planned
from benchmarks.sides import Spread, alternate, ratio

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from benchmarks.model import Model
    from benchmarks.record import Cell, Result
    from benchmarks.second_guidance.measured import Measured
    from benchmarks.second_guidance.steps import Steps

    #: The turns of each guidance.
    Turns = Mapping[str, Sequence[Measured]]

#: Steps by their names in `Steps`.
KINDS = ("none", "sag", "pag", "seg", "seg_blurred", "sag_and_pag")
#: Rows of a call in the counts of the scheduler.
LIMITS = (3, 4, 8, 16, 32, 48)
STEPS = 25


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--block", default="mid_block", help="whose self-attention is perturbed")
    parser.add_argument("--runs", type=int, default=9, help="steps whose median is one turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each guidance")
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure, count and save."""
    with model.chosen(arguments) as chosen:
        machine = process.once("torch", record.machine, chosen.device)
        with ExitStack() as stack:
            sides = {
                kind: stack.enter_context(process.start(kind, _steps, chosen, arguments.block))
                for kind in KINDS
            }
            measured = {tasks: _turns(sides, tasks, arguments) for tasks in arguments.tasks}
    _publish_times(measured, chosen, machine, arguments)
    counted = record.Result(
        name="guidance-calls",
        title=f"UNet calls of tasks of {STEPS} steps that arrive together",
        headline="Counted by the engine's scheduler, without a network.",
        model="none",
        machine=machine,
        options=record.options(steps=STEPS),
        rows=_counted(arguments.tasks),
    )
    print(report.markdown(counted), record.save(counted, arguments.out), sep="\n")


def _steps(chosen: Model, block: str) -> Steps:
    """The object of a side; its import brings torch, which the parent does not load."""
    from benchmarks.second_guidance.steps import Steps  # noqa: PLC0415  # as said

    return Steps(chosen, block)


def _measure(steps: Steps, kind: str, tasks: int, runs: int) -> Measured:
    return steps.measure(kind, tasks, runs)


def _turns(
    sides: Mapping[str, process.Side[Steps]], tasks: int, arguments: argparse.Namespace
) -> Turns:
    """The turns of each guidance; both together need two tasks."""
    kinds = [kind for kind in sides if tasks > 1 or kind != "sag_and_pag"]
    found = alternate(
        [partial(sides[kind].remote(_measure), kind, tasks, arguments.runs) for kind in kinds],
        arguments.repeats,
    )
    return dict(zip(kinds, found, strict=True))


def _rows(tasks: int, turns: Turns) -> list[dict[str, Cell]]:
    return [
        {
            "tasks": tasks,
            "guidance": kind,
            "rows_of_calls": " + ".join(map(str, own[0].calls)),
            **Spread.of([1e3 * each.wall_s for each in own]).cells("step_ms"),
            "cpu_ms": record.rounded(1e3 * median(cpu_s)) if (cpu_s := _cpu_s(own)) else None,
            **_against(turns, kind, "none").cells("times_none"),
            **_against(turns, kind, "sag").cells("times_sag"),
        }
        for kind, own in turns.items()
    ]


def _cpu_s(own: Sequence[Measured]) -> list[float]:
    """The processor times of a guidance's turns; none on a GPU."""
    return [each.cpu_s for each in own if each.cpu_s is not None]


def _against(turns: Turns, kind: str, other: str) -> Spread:
    """Ratio of two guidances' times: processor time on a CPU, which others disturb less."""
    over, under = (
        _cpu_s(turns[name]) or [each.wall_s for each in turns[name]] for name in (kind, other)
    )
    return ratio(over, under)


def _publish_times(
    measured: Mapping[int, Turns],
    chosen: Model,
    machine: record.Machine,
    arguments: argparse.Namespace,
) -> None:
    """Save the times with their plot, and print them."""
    ratios = [
        f"{_against(turns, 'pag', 'sag').median:.2f} with {n}" for n, turns in measured.items()
    ]
    result = record.Result(
        name="guidance-rows-sd15" if arguments.sd15 else "guidance-rows",
        title="A step with no second guidance, SAG, PAG and SEG",
        headline=f"A step with PAG takes, in times of one with SAG: {', '.join(ratios)} tasks.",
        model=chosen.name,
        machine=machine,
        options=record.options(
            block=arguments.block,
            dtype=arguments.dtype,
            runs=arguments.runs,
            repeats=arguments.repeats,
        ),
        rows=[row for tasks, turns in measured.items() for row in _rows(tasks, turns)],
    )
    report.publish(result, _plot(result, measured), arguments.out)


def _counted(tasks: Sequence[int]) -> list[dict[str, Cell]]:
    """For each number of tasks and rows of a call: the calls of each guidance."""
    found: list[dict[str, Cell]] = []
    for count in tasks:
        for limit in LIMITS:
            row: dict[str, Cell] = {"tasks": count, "rows_of_a_call_at_most": limit}
            for name in PASSES:
                own = planned([name] * count, STEPS, limit)
                first = last_first_step(own, [name] * count)
                row |= {name: len(own), f"{name}_last_first_step": first}
            mixed = planned([("sag", "pag")[n % 2] for n in range(count)], STEPS, limit)
            found.append(row | {"half_sag_half_pag": len(mixed)})
    return found


def _plot(result: Result, measured: Mapping[int, Turns]) -> Figure:
    drawn, (axes,) = chart.figure(result)
    sides = {
        kind: [_against(turns, kind, "none") for turns in measured.values()]
        for kind in ("sag", "pag", "seg")
    }
    labels = [f"{_against(turns, 'pag', 'sag').median:.2f}" for turns in measured.values()]
    chart.bars(axes, [f"{tasks} tasks" for tasks in measured], sides, labels)
    axes.set_ylabel("step, times one without; above: PAG over SAG")
    return drawn
