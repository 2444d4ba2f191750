"""The cost of each kind of call by picture, of this checkout and of another one, in turns."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks import process
from benchmarks.pool import costs, reports
from benchmarks.pool.costs import CostsSide
from benchmarks.pool.plan import Plan
from benchmarks.record import Result, rounded
from benchmarks.sides import alternate
from worker import embedded
from worker.recovery.timing import renewal_period_s

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from benchmarks.pool.costs import Cost
    from benchmarks.record import Cell, Machine

#: Turns of each side.
REPEATS = 7


def made(
    arguments: argparse.Namespace, machine: Machine, options: dict[str, Cell]
) -> tuple[Result, Figure]:
    """Measure; the plot has this checkout's costs."""
    plan = Plan(
        url="", first=0, workers=1, slots=arguments.slots, steps=arguments.steps,
        pace=arguments.pace, checkpoint_every=arguments.checkpoint_every,
        checkpoint_bytes=int(1024 * arguments.checkpoint_kb), lease_s=arguments.lease_s,
    )  # fmt: skip
    checkouts = {"now": None} | ({"before": arguments.before} if arguments.before else {})
    with ExitStack() as stack:
        folder = stack.enter_context(embedded.scratch())
        url = stack.enter_context(embedded.redis_server(folder))
        calls = [
            stack.enter_context(process.start(name, costs.start, url, checkout, vars(plan))).remote(
                CostsSide.measure
            )
            for name, checkout in checkouts.items()
        ]
        for call in calls:
            call()
        turns = alternate(calls, REPEATS)
    sides = [_middle(each) for each in turns]
    numbers = _numbers(plan)
    rows = [_row(name, number, sides) for name, number in numbers.items() if number]
    totals = [
        sum(each[name].main_us * number for name, number in numbers.items()) for each in sides
    ]
    headline = f"A picture costs {totals[0]:,.0f} µs of Redis's core at {plan.pace:g} a second"
    headline += f", before {totals[1]:,.0f} µs." if totals[1:] else "."
    result = Result(
        "pool-costs", "What a picture costs Redis, by call", headline, reports.MODEL,
        machine, options, rows,
    )  # fmt: skip
    return result, reports.bars(result, "call", "us_a_picture", "Redis µs for each picture")


def _middle(turns: Sequence[dict[str, Cost]]) -> dict[str, Cost]:
    """By kind, the turn whose processor time is the median."""
    return {
        name: sorted((turn[name] for turn in turns), key=lambda each: each.main_us)[len(turns) // 2]
        for name in turns[0]
    }


def _numbers(plan: Plan) -> dict[str, float]:
    """How often each kind of call is made for one picture."""
    run_s = plan.steps * plan.round_s
    every = plan.checkpoint_every
    numbers: dict[str, float] = {
        "submit": 1, "take": 1, "claim": 1, "progress of a step": plan.steps,
        "checkpoint": (plan.steps - 1) // every if every else 0,
        "PROGRESS state": 1 + min(run_s, plan.steps),
        "lease": run_s / renewal_period_s(plan.lease_s),
        "before an upload": 2, "finish": 1, "Celery's result": 1, "close": 1, "acknowledge": 1,
    }  # fmt: skip
    return numbers


def _row(name: str, number: float, sides: Sequence[dict[str, Cost]]) -> dict[str, Cell]:
    cost, *others = (side[name] for side in sides)
    row: dict[str, Cell] = {
        "call": name,
        "a_picture": rounded(number),
        "commands": rounded(cost.calls),
        "us": rounded(cost.main_us),
        "us_a_picture": rounded(cost.main_us * number),
        "kb_a_picture": rounded(cost.network_bytes * number / 1024),
    }
    for before in others:
        row |= {
            "commands_before": rounded(before.calls),
            "us_before": rounded(before.main_us),
            "us_a_picture_before": rounded(before.main_us * number),
        }
    return row
