"""Reconcilers over the shared Redis, held tasks, and tasks that look untouched."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from api_contracts import names
from api_contracts.names import queue_name
from tests.record.owners import LEASE_S, TTL_S
from worker.broker.held_messages import HeldMessages
from worker.record.push_queue import PushQueue
from worker.recovery.reconciler import Reconciler

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.client.sender import Waiting
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

    def __call__(self, message: Waiting) -> None:
        """Record a message."""
        with self._lock:
            self.letters.append((message.task_id, json.loads(message.request), message.queue))

    @property
    def ids(self) -> list[str]:
        """The tasks, in the order in which they were sent."""
        return [task_id for task_id, _, _ in self.letters]


def reconciler(
    redis: Redis,
    keys: Keys,
    sent: Callable[[Waiting], None] | None = None,
    lease_s: float = LEASE_S,
) -> Reconciler:
    """A worker's reconciler, its thread not started; `sent` gets what it would send again."""
    made = Reconciler(
        redis, keys, HeldMessages(redis), PushQueue(redis, keys, TTL_S),
        [queue_name(keys.namespace)], lease_s=lease_s, record_ttl_s=TTL_S,
    )  # fmt: skip
    if sent is not None:
        vars(made)["_send"] = sent
    return made


def elected(redis: Redis, keys: Keys, sent: Callable[[Waiting], None] | None = None) -> Reconciler:
    """The reconciler of the elected worker."""
    made = reconciler(redis, keys, sent)
    assert made._is_elected()
    return made


def age(redis: Redis, keys: Keys, *task_ids: str) -> None:
    """Make tasks look as if they had not been written to for long."""
    redis.zadd(keys.open, dict.fromkeys(task_ids, 1000.5))


def lose(redis: Redis, model: str) -> None:
    """Delete the queue of a model."""
    redis.delete(*names.queue_lists(model))


def begin(made: Reconciler, rounds: list[Reconciler]) -> Reconciler:
    rounds.append(made)
    made.start()
    made.start()
    return made
