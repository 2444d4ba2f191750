"""The registry of the tasks that a process holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.record.owners import take
from tests.record.reconcilers import hold
from worker.job_control import Stop
from worker.recovery.active_tasks import ActiveTasks

if TYPE_CHECKING:
    from worker.record.task_record import TaskRecord


def test_a_task_is_active_once() -> None:
    """A second delivery of an active task is refused; after the first has ended it is not."""
    tasks = ActiveTasks()
    first = tasks.add("t")
    assert first is not None
    assert tasks.add("t") is None
    assert tasks.ids == ["t"]
    tasks.remove(first)
    assert tasks.ids == []
    assert tasks.add("t") is not None


def test_only_claimed_tasks_are_renewed(records: TaskRecord) -> None:
    """A delivery is claimed once Redis has granted it, until another worker has the task."""
    tasks = ActiveTasks()
    tasks.add("waits")
    assert not tasks.new_claim.is_set()
    task = hold(tasks, claim := take(records, "runs"))
    assert tasks.new_claim.is_set()
    assert tasks.claimed() == [(task, claim)]
    assert [tasks.is_claimed(each) for each in ("runs", "waits", "unknown")] == [True, False, False]
    task.claim = None
    assert tasks.claimed() == []
    assert not tasks.is_claimed("runs")
    assert tasks.ids == ["runs", "waits"]


def test_a_stop_concerns_later_tasks_too() -> None:
    """A delivery that begins after a drain is drained, too; the first reason of each stays."""
    tasks = ActiveTasks()
    early, cancelled = tasks.add("early"), tasks.add("cancelled")
    assert early is not None
    assert cancelled is not None
    cancelled.control.request(Stop.CANCELLED)
    tasks.stop_all(Stop.DRAINED)
    late = tasks.add("late")
    assert late is not None
    found = [task.control.asked() for task in (early, cancelled, late)]
    assert found == [Stop.DRAINED, Stop.CANCELLED, Stop.DRAINED]
