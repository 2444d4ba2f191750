"""Which tasks were taken from a worker that lived, was awake and could be heard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.machine import LEASE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.chaos.faults import Struck
    from tests.chaos.history import Told
    from tests.chaos.journal import Child

#: How long after its end a fault still excuses a takeover, in seconds.
GRACE_S = 2.0 * LEASE_S


def robbed(
    timeline: Mapping[str, Sequence[Told]],
    owner: Callable[[str, int], Child | None],
    deaths: Mapping[Child, float],
    struck: Sequence[Struck],
) -> Iterator[tuple[str, str]]:
    """Each task that changed hands without a reason, and how.

    `owner` says who claimed an attempt of a task, `deaths` when a process was found dead.
    """
    for task_id, stream in timeline.items():
        for before, after in _handovers(stream):
            assert before.event is not None
            assert after.event is not None
            child = owner(task_id, before.event.attempt)
            if child is None or deaths.get(child, float("inf")) <= after.moment_s:
                continue
            if not any(_excuses(fault, child, before, after) for fault in struck):
                yield task_id, f"attempt {after.event.attempt} began while {child} had the task"


def _handovers(stream: Sequence[Told]) -> Iterator[tuple[Told, Told]]:
    """Each start and the next one, unless who started first gave the task back."""
    held: Told | None = None
    for told in stream:
        event = told.event
        if event is None:
            continue
        if event.type == "started":
            if held is not None:
                yield held, told
            held = told
        elif event.type == "requeued" and held is not None and held.event is not None:
            held = None if event.worker == held.event.worker else held


def _excuses(fault: Struck, child: Child, before: Told, after: Told) -> bool:
    """Whether the fault hit this process while it had the task, or shortly before."""
    over_s = fault.moment_s + fault.fault.lasts_s + GRACE_S
    meanwhile = fault.moment_s <= after.moment_s and over_s >= before.moment_s
    return meanwhile and child in fault.children
