"""Recovers lost messages and tasks, on one elected worker at a time. One daemon thread.

Every half second it requeues messages whose lease has expired. Every half lease period it sends
open tasks again of which no queue and no worker has a message (a duplicate is harmless, since
claims are fenced), and ends queued tasks past their deadline.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kombu.exceptions import EncodeError
from redis.exceptions import LockError, RedisError

from api_contracts.redis_io.connection import is_unavailable
from worker import metrics
from worker.background import BackgroundThread, log_error
from worker.recovery.open_tasks import OpenTasks, request_of
from worker.recovery.redis_outage import PrimaryWatch
from worker.recovery.timing import (
    ELECTION_TTL_S,
    RECONCILE_PERIOD_S,
    UNAVAILABLE_GRACE_S,
    walk_period_s,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from api_contracts.names import Keys
    from worker.broker.held_messages import HeldMessages
    from worker.recovery.open_tasks import Suspect

logger = logging.getLogger(__name__)


class _DeposedError(Exception):
    """This worker may be elected no longer, or no worker could renew its leases meanwhile."""


@contextmanager
def _go_on_after(what: str) -> Iterator[None]:
    """Log an error that concerns one message or task, and continue with the others."""
    try:
        yield
    except Exception as error:
        if is_unavailable(error):
            raise
        logger.exception("%s", what)


class Reconciler:
    """The worker that holds the lock runs the rounds; the others try to get it."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        messages: HeldMessages,
        send: Callable[[str, Any, str], None],
        *,
        lease_s: float,
        record_ttl_s: int,
    ) -> None:
        """`redis` has the records; `send` gets a task id, its request and its queue."""
        self._messages, self._send = messages, send
        self._servers = PrimaryWatch(redis, keys), PrimaryWatch(messages.redis, keys)
        self._walk_period_s = walk_period_s(lease_s)
        self._tasks = OpenTasks(redis, keys, lease_s=lease_s, record_ttl_s=record_ttl_s)
        self._lock = redis.lock(
            keys.reconciler, timeout=ELECTION_TTL_S, blocking=False, thread_local=False
        )
        self._failed_s = float("-inf")
        self._awake_s = time.monotonic()
        self._walked_s = float("-inf")
        self._thread = BackgroundThread(
            "reconciler", self._round, self._on_error,
            pause_s=RECONCILE_PERIOD_S, on_exit=self._release_lock,
        )  # fmt: skip

    def start(self) -> None:
        """Start the thread."""
        self._awake_s = time.monotonic()
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and release the lock, so that another worker can be elected."""
        self._thread.close(ELECTION_TTL_S)

    def run_once(self) -> None:
        """One round of the elected worker; raises redis-py's exceptions."""
        self._awake_s = time.monotonic()
        if self._is_just_back():
            return
        overdue = self._messages.overdue()
        if self._was_frozen():
            return
        for tag in overdue:
            with _go_on_after(f"message {tag} can't be requeued"):
                if self._messages.requeue(tag, only_overdue=True):
                    metrics.RECOVERED.labels("lease").inc()
                    logger.warning("message %s requeued: its lease expired", tag)
        if time.monotonic() - self._walked_s > self._walk_period_s:
            try:
                self.walk()
            finally:
                self._walked_s = time.monotonic()

    def walk(self) -> None:
        """Check every open task that was not updated for one lease period."""
        self._tasks.forget_pending_cancels()
        suspects = dict(self._tasks.suspects(self._stays_elected))
        if not suspects:
            return
        queues = {suspect.queue for suspect in suspects.values()}
        try:
            for task_id in self._messages.ids(queues, self._must_stay_elected):
                suspects.pop(task_id, None)
        except _DeposedError:
            return
        for task_id, suspect in suspects.items():
            if self._was_frozen():
                return
            with _go_on_after(f"task {task_id} can't be sent again"):
                self._send_again(task_id, suspect)

    def _send_again(self, task_id: str, suspect: Suspect) -> None:
        if (request := self._tasks.revive(task_id, suspect)) is None:
            return
        try:
            self._send(task_id, request_of(request), suspect.queue)
        except (EncodeError, RecursionError):  # nested too deep: the next claim refuses None
            self._send(task_id, None, suspect.queue)
        metrics.RECOVERED.labels("lost").inc()
        logger.warning("task %s was orphaned, without a message; sent again", task_id)

    def _is_just_back(self) -> bool:
        """Whether Redis was away recently: restarted, failed over, or not reached from here."""
        if time.monotonic() - self._failed_s < UNAVAILABLE_GRACE_S:
            return True
        return any(server.is_just_back(UNAVAILABLE_GRACE_S) for server in self._servers)

    def _was_frozen(self) -> bool:
        """Whether Redis or this process was frozen so long that others may have missed renewals.

        Measures the time since the last call, so it must be called often.
        """
        now_s = time.monotonic()
        was, self._awake_s = now_s - self._awake_s > ELECTION_TTL_S, now_s
        if was:
            self._failed_s = now_s
        return was

    def _stays_elected(self) -> bool:
        try:
            extended = bool(self._lock.extend(ELECTION_TTL_S, replace_ttl=True))
        except LockError:
            return False
        return extended and not self._was_frozen()

    def _must_stay_elected(self) -> None:
        if not self._stays_elected():
            raise _DeposedError

    def _round(self) -> None:
        elected = (self._lock.owned() or self._lock.acquire()) and self._stays_elected()
        if not self._was_frozen() and elected:
            self.run_once()

    def _on_error(self, error: Exception) -> None:
        self._failed_s = time.monotonic()
        log_error(logger, "reconciler round failed", error)

    def _release_lock(self) -> None:
        try:
            self._lock.release()
        except (LockError, RedisError):
            logger.debug("not elected, or Redis is unavailable: the lock expires by itself")
