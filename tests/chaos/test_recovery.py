"""What is made of the moments: times to recover, and takeovers without a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from api_contracts.events import EVENT
from tests.chaos.fault_injector import AppliedFault
from tests.chaos.fault_schedule import Fault, FaultKind
from tests.chaos.recorded_events import StreamEntry
from tests.chaos.recovery import recoveries
from tests.chaos.takeovers import GRACE_S, unexplained
from tests.chaos.worker_logs import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

A, B = WorkerProcess("machine-0-1", 10), WorkerProcess("machine-1-1", 10)
FIELDS: dict[str, dict[str, object]] = {
    "started": {"model": "default", "device": "cpu"},
    "progress": {"step": 1, "total_steps": 2},
    "requeued": {"reason": "drained"},
    "cancelled": {"step": 1},
}


def stream(*rows: tuple[float, str, int, str]) -> list[StreamEntry]:
    """Moment, kind, attempt and worker of each event."""
    return [
        StreamEntry(
            seq,
            EVENT.validate_python(
                {
                    "task_id": "t", "seq": seq, "attempt": attempt, "type": kind, "worker": worker,
                    "at": "2026-01-01T00:00:00Z", **FIELDS[kind],
                }
            ),
            seen_at_s,
        )
        for seq, (seen_at_s, kind, attempt, worker) in enumerate(rows, 1)
    ]  # fmt: skip


def owner(_task_id: str, attempt: int) -> WorkerProcess | None:
    return {1: A, 2: B}.get(attempt)


def applied(
    kind: FaultKind, *children: WorkerProcess, at_s: float = 10.0, lasts_s: float = 1.0
) -> AppliedFault:
    return AppliedFault(Fault(0, kind, 1.0, 0, lasts_s, 0.5), at_s, frozenset(children))


RUNNING = (5.0, "started", 1, "a"), (6.0, "progress", 1, "a")


@pytest.mark.parametrize(
    ("kind", "hit", "rows", "times_s", "never"),
    [
        pytest.param(
            FaultKind.KILL_CHILD, A, [(14.5, "started", 2, "b")], (4.5,), 0, id="it restarts"
        ),
        pytest.param(FaultKind.KILL_CHILD, A, [], (), 1, id="it is lost"),
        pytest.param(
            FaultKind.KILL_CHILD, B, [(14.5, "started", 2, "b")], None, 0, id="another's task"
        ),
        pytest.param(
            FaultKind.KILL_CHILD, A, [(10.01, "cancelled", 1, "a")], None, 0, id="seen late"
        ),
        pytest.param(FaultKind.FREEZE, A, [(12.0, "cancelled", 1, "a")], (2.0,), 0, id="it ends"),
        pytest.param(
            FaultKind.DRAIN, A, [(11.0, "requeued", 1, "a"), (13.0, "started", 1, "b")], (1.0,), 0,
            id="it is given back",
        ),
        pytest.param(
            FaultKind.FREEZE, A, [(12.0, "progress", 1, "a"), (13.0, "started", 2, "b")], (3.0,), 0,
            id="progress is no recovery",
        ),
    ],
)  # fmt: skip
def test_time_to_recover(
    kind: FaultKind,
    hit: WorkerProcess,
    rows: Sequence[tuple[float, str, int, str]],
    times_s: tuple[float, ...] | None,
    never: int,
) -> None:
    """The time to recover is from a fault to the next start, end or requeue of a task it hit."""
    found = recoveries([applied(kind, hit)], {"t": stream(*RUNNING, *rows)}, owner)
    if times_s is None:
        assert kind not in found
    else:
        assert found[kind].times_s == pytest.approx(times_s)
        assert found[kind].never == never


def test_a_task_that_had_ended_was_not_hit() -> None:
    """Only a task that ran when the fault was applied counts as hit by it."""
    ended = stream(*RUNNING, (7.0, "cancelled", 1, "a"))
    back = stream(*RUNNING, (7.0, "requeued", 1, "a"))
    assert recoveries([applied(FaultKind.FREEZE, A)], {"t": ended, "u": back}, owner) == {}


def test_a_waiting_task_whose_message_is_deleted_is_hit() -> None:
    """A waiting task whose message was deleted recovers by its next start, in any worker."""
    lost = replace(applied(FaultKind.MESSAGES_LOST), tasks=frozenset({"t"}))
    late = {"t": stream((12.0, "started", 1, "b")), "u": stream((12.0, "started", 1, "b"))}
    assert recoveries([lost], late, owner)[FaultKind.MESSAGES_LOST].times_s == pytest.approx((2.0,))


def test_percentiles() -> None:
    """The p50 of four is the second, the p99 the last."""
    tasks = {str(n): stream(*RUNNING, (10.0 + n, "started", 2, "b")) for n in (1, 2, 3, 4)}
    found = recoveries([applied(FaultKind.KILL_CHILD, A)], tasks, owner)[FaultKind.KILL_CHILD]
    assert found.percentile_s(0.5) == pytest.approx(2)
    assert found.percentile_s(0.99) == pytest.approx(4)


TAKEN = stream(*RUNNING, (20.0, "started", 2, "b"))


@pytest.mark.parametrize(
    ("deaths", "faults", "is_found"),
    [
        pytest.param({}, [], True, id="no reason"),
        pytest.param({A: 15.0}, [], False, id="its owner was dead"),
        pytest.param({A: 25.0}, [], True, id="its owner died later"),
        pytest.param({}, [applied(FaultKind.FREEZE, A)], False, id="its owner was frozen"),
        pytest.param({}, [applied(FaultKind.FREEZE, B)], True, id="another was frozen"),
        pytest.param({}, [applied(FaultKind.FREEZE, A, at_s=21.0)], True, id="frozen afterwards"),
        pytest.param(
            {}, [applied(FaultKind.FREEZE, A, at_s=3.0 - GRACE_S)], True, id="long before"
        ),
    ],
)  # fmt: skip
def test_a_takeover_needs_a_reason(
    deaths: dict[WorkerProcess, float], faults: list[AppliedFault], *, is_found: bool
) -> None:
    """A task may be taken from a process that is dead or that a fault hit meanwhile."""
    found = list(unexplained({"t": TAKEN}, owner, deaths, faults))
    assert [task_id for task_id, _ in found] == (["t"] if is_found else [])


def test_a_start_after_a_requeue_is_no_takeover() -> None:
    """A task that its owner requeued may be started by any worker."""
    back = stream(*RUNNING, (7.0, "requeued", 1, "a"), (8.0, "started", 2, "b"))
    assert list(unexplained({"t": back}, owner, {}, [])) == []
