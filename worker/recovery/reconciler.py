"""Recovers lost messages and tasks, on one elected worker at a time. One daemon thread.

Every half second it requeues messages whose lease has expired, ends queued tasks past their
deadline, and makes some steps of a walk, which sends open tasks again of which no queue and no
worker has a message (a duplicate is harmless, since claims are fenced). A round takes about as much
of Redis's time with a million waiting tasks as with a thousand.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis.exceptions import LockError, RedisError

from api_contracts.client.sender import Waiting, send
from api_contracts.redis_io.connection import is_unavailable
from worker import metrics
from worker.background import BackgroundThread, log_error
from worker.recovery.message_walk import MessageWalk
from worker.recovery.open_tasks import OpenTasks, message_of
from worker.recovery.redis_outage import PrimaryWatch
from worker.recovery.timing import (
    ELECTION_TTL_S,
    RECONCILE_PERIOD_S,
    UNAVAILABLE_GRACE_S,
    election_retry_s,
    walk_period_s,
)
from worker.recovery.touched_tasks import TouchedTasks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from redis import Redis

    from api_contracts.names import Keys
    from worker.broker.held_messages import HeldMessages
    from worker.record.push_queue import PushQueue
    from worker.recovery.open_tasks import Suspect

logger = logging.getLogger(__name__)

#: Messages and tasks that a round reads in any case, and for how long it goes on, in seconds: at
#: two rounds a second a fiftieth of Redis's time.
ROUND_READS, ROUND_S = 500, 0.01


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

    def __init__(  # noqa: PLR0913  # its parts
        self,
        redis: Redis,
        keys: Keys,
        messages: HeldMessages,
        pushes: PushQueue,
        queues: Iterable[str],
        *,
        lease_s: float,
        record_ttl_s: int,
    ) -> None:
        """`redis` has the records; `queues` are those of this process, which learns of others."""
        self._messages, self._queues = messages, set(queues)
        self._lease_s = lease_s
        self._tasks = OpenTasks(redis, keys, pushes, record_ttl_s)
        self._touched = TouchedTasks(redis, keys, pushes)
        self._servers = (
            PrimaryWatch(redis, keys, self._touched.forget),
            PrimaryWatch(messages.redis, keys),
        )
        self._lock = redis.lock(
            keys.reconciler, timeout=ELECTION_TTL_S, blocking=False, thread_local=False
        )
        self._failed_s = float("-inf")
        self._awake_s = time.monotonic()
        #: When the last walk ended, and the steps of the present one.
        self._walked_s = float("-inf")
        self._walk: Iterator[int] | None = None
        #: When this process last tried to be elected; None while it is.
        self._tried_s: float | None = float("-inf")
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
        self._spend(self._touched.read())
        self._spend(self._touched.end_overdue())
        if self._walk is None and self._is_walk_due():
            walk = MessageWalk(self._tasks, self._messages, self._queues, self._lease_s)
            self._walk = walk.steps(self._revive)
        if self._walk is not None and self._spend(self._walk):
            self._walk, self._walked_s = None, time.monotonic()

    def walk(self) -> None:
        """Send every open task again that has no message, at once."""
        walk = MessageWalk(self._tasks, self._messages, self._queues, self._lease_s)
        for _ in walk.steps(self._revive):
            pass

    def _is_walk_due(self) -> bool:
        return time.monotonic() - self._walked_s > walk_period_s(self._lease_s)

    def _spend(self, steps: Iterator[int]) -> bool:
        """Make as many steps as a round may, each of which reads a number; True after the last."""
        total, until_s = 0, time.monotonic() + ROUND_S
        for number in steps:
            total += number
            if self._was_frozen() or (total >= ROUND_READS and time.monotonic() > until_s):
                return False
        return True

    def _revive(self, task_id: str, suspect: Suspect) -> None:
        with _go_on_after(f"task {task_id} can't be sent again"):
            if (request := self._tasks.revive(task_id, suspect)) is not None:
                self._send(message_of(task_id, request, suspect.queue))
                metrics.RECOVERED.labels("lost").inc()
                logger.warning("task %s was orphaned, without a message; sent again", task_id)

    def _send(self, message: Waiting) -> None:
        send(self._messages.redis, [message])

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

    def _is_elected(self) -> bool:
        """Extend the election, or try to be elected, at most every `election_retry_s`."""
        now_s = time.monotonic()
        if self._tried_s is not None:
            if now_s - self._tried_s < election_retry_s(self._lease_s):
                return False
            self._tried_s = None if self._lock.acquire() else now_s
        elif not self._stays_elected():
            self._tried_s = now_s
        return self._tried_s is None

    def _round(self) -> None:
        was_frozen = self._was_frozen()  # also measured while another worker is elected
        if not self._is_elected():
            self._walk = None
        elif not was_frozen:
            self.run_once()

    def _on_error(self, error: Exception) -> None:
        self._failed_s, self._walk = time.monotonic(), None
        log_error(logger, "reconciler round failed", error)

    def _release_lock(self) -> None:
        try:
            self._lock.release()
        except (LockError, RedisError):
            logger.debug("not elected, or Redis is unavailable: the lock expires by itself")
