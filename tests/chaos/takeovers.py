"""Finds tasks that were taken from a living worker that no fault had hit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.machine import LEASE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.chaos.fault_injector import AppliedFault
    from tests.chaos.recorded_events import StreamEntry
    from tests.chaos.worker_logs import WorkerProcess

#: How long after its end a fault still explains a takeover, in seconds.
GRACE_S = 2.0 * LEASE_S


def unexplained(
    timeline: Mapping[str, Sequence[StreamEntry]],
    owner: Callable[[str, int], WorkerProcess | None],
    deaths: Mapping[WorkerProcess, float],
    applied: Sequence[AppliedFault],
) -> Iterator[tuple[str, str]]:
    """Each task whose owner changed without a reason, and how.

    `owner` gives the process that claimed an attempt, `deaths` when a process was found dead.
    """
    for task_id, stream in timeline.items():
        for before, after in _handovers(stream):
            assert before.event is not None
            assert after.event is not None
            child = owner(task_id, before.event.attempt)
            if child is None or deaths.get(child, float("inf")) <= after.seen_at_s:
                continue
            if not any(_explains(fault, child, before, after) for fault in applied):
                yield task_id, f"attempt {after.event.attempt} started while {child} had the task"


def _handovers(stream: Sequence[StreamEntry]) -> Iterator[tuple[StreamEntry, StreamEntry]]:
    """Each `started` and the next one, unless the first owner requeued the task between them."""
    owned: StreamEntry | None = None
    for entry in stream:
        event = entry.event
        if event is None:
            continue
        if event.type == "started":
            if owned is not None:
                yield owned, entry
            owned = entry
        elif event.type == "requeued" and owned is not None and owned.event is not None:
            owned = None if event.worker == owned.event.worker else owned


def _explains(
    fault: AppliedFault, child: WorkerProcess, before: StreamEntry, after: StreamEntry
) -> bool:
    """Whether the fault hit this process while it owned the task, or shortly before."""
    over_s = fault.at_s + fault.fault.lasts_s + GRACE_S
    meanwhile = fault.at_s <= after.seen_at_s and over_s >= before.seen_at_s
    return meanwhile and child in fault.children
