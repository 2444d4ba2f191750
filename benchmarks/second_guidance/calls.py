"""How many UNet calls the engine's scheduler makes of tasks whose passes have so many rows. Exact.

Plans with the engine's own `Scheduler`, without a network.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.engine.batch_scheduler import Bucket, Candidate, Scheduler

#: Rows of the dependent passes of a step with classifier-free guidance.
PASSES = {"none": (2,), "sag": (2, 1), "pag": (3,)}
_BUCKET = Bucket("default", 64, 64, 77, None)


@dataclass(frozen=True)
class Calls:
    """The calls of some tasks of equal length that arrive together."""

    #: Until the last task is done.
    calls: int
    #: Until the first and the last task have done their first step.
    first_step: int
    last_first_step: int
    #: Mean of the rows of a call.
    rows: float


def count(guidances: list[str], steps: int, limit_rows: int) -> Calls:
    """One task for each of `guidances`, with at most `limit_rows` rows in a call."""
    scheduler, done = Scheduler(), [0] * len(guidances)
    passes = [PASSES[each] for each in guidances]
    calls, rows, begun = 0, 0, dict[int, int]()
    while True:
        left = [
            Candidate(task, 0, _BUCKET, own[done[task] % len(own)], fresh=done[task] < len(own))
            for task, own in enumerate(passes)
            if done[task] < steps * len(own)
        ]
        chosen = scheduler.plan(left, lambda _: limit_rows)
        if not chosen:
            return Calls(calls, min(begun.values()), max(begun.values()), rows / calls)
        calls += 1
        for each in chosen:
            rows += each.rows
            done[each.job] += 1
            if done[each.job] == len(passes[each.job]):
                begun[each.job] = calls
