"""Reconcilers over the shared Redis, held tasks, and tasks that look untouched."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tests.record.owners import LEASE_S, TTL_S
from worker.broker.held_messages import HeldMessages
from worker.recovery.reconciler import Reconciler

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.claim import Claim
    from worker.recovery.active_tasks import ActiveTask, ActiveTasks


def hold(tasks: ActiveTasks, claim: Claim) -> ActiveTask:
    """Have a process hold a task that it has claimed."""
    task = tasks.add(claim.task_id)
    assert task is not None
    tasks.grant(task, claim)
    return task


class Sent:
    """Records what a reconciler sends again: task id, request and queue."""

    def __init__(self) -> None:
        self.letters: list[tuple[str, Any, str]] = []
        self._lock = threading.Lock()

    def __call__(self, task_id: str, request: Any, queue: str) -> None:
        """Record a message."""
        with self._lock:
            self.letters.append((task_id, request, queue))

    @property
    def ids(self) -> list[str]:
        """The tasks, in the order in which they were sent."""
        return [task_id for task_id, _, _ in self.letters]


def reconciler(redis: Redis, keys: Keys, sent: Any, lease_s: float = LEASE_S) -> Reconciler:
    """A worker's reconciler, its thread not started; see `elected`."""
    return Reconciler(redis, keys, HeldMessages(redis), sent, lease_s=lease_s, record_ttl_s=TTL_S)


def elected(redis: Redis, keys: Keys, sent: Any) -> Reconciler:
    """The reconciler of the elected worker."""
    made = reconciler(redis, keys, sent)
    assert made._lock.acquire()
    return made


def age(redis: Redis, keys: Keys, *task_ids: str) -> None:
    """Make tasks look as if they had not been written to for long."""
    redis.zadd(keys.open, dict.fromkeys(task_ids, 1000.5))
