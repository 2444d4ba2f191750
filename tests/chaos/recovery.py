"""Time until the tasks that a fault hit went on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.fault_schedule import SILENCING, FaultKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.chaos.fault_injector import AppliedFault
    from tests.chaos.recorded_events import StreamEntry
    from tests.chaos.worker_logs import WorkerProcess


@dataclass(frozen=True)
class Recovery:
    """Seconds from a fault to the next start, end or requeue of each task that it hit."""

    times_s: tuple[float, ...]
    #: Tasks without any of these.
    never: int

    def percentile_s(self, share: float) -> float | None:
        """The time that this share of the tasks did not exceed; None without tasks."""
        if not self.times_s:
            return None
        return sorted(self.times_s)[max(0, math.ceil(share * len(self.times_s)) - 1)]


def recoveries(
    applied: Iterable[AppliedFault],
    timeline: Mapping[str, Sequence[StreamEntry]],
    owner: Callable[[str, int], WorkerProcess | None],
) -> dict[FaultKind, Recovery]:
    """Recovery by kind of fault; only faults that hit running or waiting tasks count.

    `owner` gives the process that claimed an attempt of a task.
    """
    found: dict[FaultKind, list[float | None]] = {}
    for fault in applied:
        for task_id, stream in timeline.items():
            hit = _if_running(fault, stream, owner)
            if task_id in fault.tasks:
                hit = _after(fault, stream)
            if hit is not None:
                found.setdefault(fault.fault.kind, []).append(hit.after_s)
    return {
        kind: Recovery(tuple(t for t in times if t is not None), times.count(None))
        for kind, times in found.items()
    }


@dataclass(frozen=True)
class _Hit:
    after_s: float | None


def _if_running(
    fault: AppliedFault,
    stream: Sequence[StreamEntry],
    owner: Callable[[str, int], WorkerProcess | None],
) -> _Hit | None:
    """The recovery of a task that the fault hit while it ran; None for any other."""
    before = [entry for entry in stream if entry.seen_at_s <= fault.at_s]
    decisive = [each for each in before if _decides(each)]
    if not decisive or decisive[-1].event is None or decisive[-1].event.type != "started":
        return None
    started = decisive[-1].event
    if owner(started.task_id, started.attempt) not in fault.children:
        return None
    late = next((entry.event for entry in stream[len(before) :] if _decides(entry)), None)
    if late is not None and fault.fault.kind in SILENCING and late.worker == started.worker:
        return None  # written before the kill, and read after it
    return _after(fault, stream)


def _after(fault: AppliedFault, stream: Sequence[StreamEntry]) -> _Hit:
    """The time from the fault until the task went on."""
    later = (entry for entry in stream if entry.seen_at_s > fault.at_s and _decides(entry))
    entry = next(later, None)
    return _Hit(None if entry is None else entry.seen_at_s - fault.at_s)


def _decides(entry: StreamEntry) -> bool:
    """Whether the task starts, ends or is requeued."""
    event = entry.event
    return event is not None and (event.is_terminal or event.type in ("started", "requeued"))
