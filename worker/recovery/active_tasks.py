"""The tasks that this process holds: every delivery in progress, claimed or not yet.

The executor adds and removes them, the lease renews those that are claimed, a drain stops all.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.job_control import Control

if TYPE_CHECKING:
    from worker.job_control import Stop
    from worker.record.claim import Claim
    from worker.tracing.spans import AttemptSpan


@dataclass(eq=False)
class ActiveTask:
    """A delivery in progress."""

    task_id: str
    control: Control = field(default_factory=Control)
    #: None until Redis grants it, and again once another worker has claimed the task.
    claim: Claim | None = None
    #: Of the attempt; None without traces.
    span: AttemptSpan | None = None


class ActiveTasks:
    """At most one delivery of a task at a time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, ActiveTask] = {}
        self._stop: Stop | None = None
        #: Set by a claim: the message's lease must be renewed now, to outlast the task's.
        self.new_claim = threading.Event()

    def add(self, task_id: str) -> ActiveTask | None:
        """Begin a delivery; None for a duplicate, when the task is active already."""
        with self._lock:
            if task_id in self._tasks:
                return None
            task = self._tasks[task_id] = ActiveTask(task_id)
            if self._stop is not None:
                task.control.request(self._stop)
            return task

    def grant(self, task: ActiveTask, claim: Claim) -> None:
        """Store a claim that Redis has granted: from now on its lease is renewed."""
        task.claim = claim
        self.new_claim.set()

    def remove(self, task: ActiveTask) -> None:
        """End a delivery."""
        with self._lock:
            del self._tasks[task.task_id]

    def stop_all(self, reason: Stop) -> None:
        """Stop all tasks, and those that are added later."""
        with self._lock:
            self._stop = reason
            for task in self._tasks.values():
                task.control.request(reason)

    @property
    def ids(self) -> list[str]:
        """The ids of all tasks, sorted."""
        with self._lock:
            return sorted(self._tasks)

    def claimed(self) -> list[tuple[ActiveTask, Claim]]:
        """The tasks with a claim, and their claims."""
        with self._lock:
            tasks = list(self._tasks.values())
        return [(task, task.claim) for task in tasks if task.claim is not None]

    def is_claimed(self, task_id: str) -> bool:
        """Whether this process has a claim on the task."""
        with self._lock:
            task = self._tasks.get(task_id)
        return task is not None and task.claim is not None
