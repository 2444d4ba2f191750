"""The UNet calls that the engine's scheduler makes of tasks that arrive together. Exact.

Plans with the engine's own `Scheduler`, without a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.engine.batch_scheduler import Bucket, Candidate, Scheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Rows of the dependent passes of a step with classifier-free guidance.
PASSES = {"none": (2,), "sag": (2, 1), "pag": (3,)}


def planned(
    guidances: Sequence[str], steps: int, limit_rows: int, buckets: Sequence[str] | None = None
) -> list[list[int]]:
    """The tasks in each call: one task for each of `guidances`, each with so many steps.

    A call has at most `limit_rows` rows. Tasks of different `buckets` share no call.
    """
    scheduler, done, calls = Scheduler(), [0] * len(guidances), list[list[int]]()
    passes = [PASSES[each] for each in guidances]
    keys = [Bucket(name, 64, 64, 77, None) for name in buckets or ["default"] * len(guidances)]
    while True:
        left = [
            Candidate(task, 0, keys[task], own[done[task] % len(own)], fresh=done[task] < len(own))
            for task, own in enumerate(passes)
            if done[task] < steps * len(own)
        ]
        chosen = scheduler.plan(left, lambda _: limit_rows)
        if not chosen:
            return calls
        calls.append([each.job for each in chosen])
        for each in chosen:
            done[each.job] += 1


def last_first_step(calls: Sequence[Sequence[int]], guidances: Sequence[str]) -> int:
    """The number of calls until each task has done its first step."""
    left = [len(PASSES[each]) for each in guidances]
    for number, tasks in enumerate(calls, start=1):
        for task in tasks:
            left[task] -= 1
        if all(each <= 0 for each in left):
            return number
    raise ValueError("no call has the first step of some task")
