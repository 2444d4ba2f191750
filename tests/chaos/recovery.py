"""How long the tasks that a fault hit took to go on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.schedule import SILENCING, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.chaos.faults import Struck
    from tests.chaos.history import Told
    from tests.chaos.journal import Child


@dataclass(frozen=True)
class Recovery:
    """Seconds from a fault to the next start or end of each task that it hit."""

    times_s: tuple[float, ...]
    #: Tasks that did neither.
    never: int

    def percentile_s(self, share: float) -> float | None:
        """The time that this share of the tasks did not exceed; None of none."""
        if not self.times_s:
            return None
        return sorted(self.times_s)[max(0, math.ceil(share * len(self.times_s)) - 1)]


def recoveries(
    struck: Iterable[Struck],
    timeline: Mapping[str, Sequence[Told]],
    owner: Callable[[str, int], Child | None],
) -> dict[Kind, Recovery]:
    """By kind of fault; only faults that hit somebody's running tasks count.

    `owner` says who claimed an attempt of a task.
    """
    found: dict[Kind, list[float | None]] = {}
    for fault in struck:
        for task_id, stream in timeline.items():
            hit = _held(fault, stream, owner)
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


def _held(
    fault: Struck, stream: Sequence[Told], owner: Callable[[str, int], Child | None]
) -> _Hit | None:
    """What became of a task if the fault hit it while it ran; None when it did not."""
    before = [told for told in stream if told.moment_s <= fault.moment_s]
    decisive = [each for each in before if _decides(each)]
    if not decisive or decisive[-1].event is None or decisive[-1].event.type != "started":
        return None
    started = decisive[-1].event
    if owner(started.task_id, started.attempt) not in fault.children:
        return None
    late = next((told.event for told in stream[len(before) :] if _decides(told)), None)
    if late is not None and fault.fault.kind in SILENCING and late.worker == started.worker:
        return None  # it had written this before it was killed, and only we saw it late
    return _after(fault, stream)


def _after(fault: Struck, stream: Sequence[Told]) -> _Hit:
    """When the task went on after the fault."""
    later = (told for told in stream if told.moment_s > fault.moment_s and _decides(told))
    told = next(later, None)
    return _Hit(None if told is None else told.moment_s - fault.moment_s)


def _decides(told: Told) -> bool:
    event = told.event
    return event is not None and (event.is_terminal or event.type in ("started", "requeued"))
