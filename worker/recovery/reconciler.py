"""The thread that finds what was lost, on one worker at a time.

Each half second: messages whose lease has run out go back into their lists. Each half lease: tasks
that the record calls open, though no list and no worker has a message of them, get a new one; one
too many is harmless, since a claim is fenced. Waiting tasks whose deadline has passed end.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kombu.exceptions import EncodeError
from redis.exceptions import LockError, RedisError

from api_contracts.redis_io.connection import is_away
from worker import metrics
from worker.recovery.lease import MOST_S
from worker.recovery.open_tasks import OpenTasks, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from api_contracts.names import Keys
    from worker.broker.held_messages import HeldMessages
    from worker.recovery.open_tasks import Suspect

logger = logging.getLogger(__name__)

#: Pause between two looks for overdue messages, in seconds.
LOOK_S = 0.5
#: How long the elected worker stays so without saying so again, in seconds.
ELECTED_S = 2.0
#: After an outage, time for every worker to renew its leases before any of them counts as run
#: out, in seconds: while Redis was away, nobody could.
GRACE_S = MOST_S + 1.0


class _DeposedError(Exception):
    """Another worker may be elected by now, or nobody could renew."""


@contextmanager
def _none_stops_the_others(what: str) -> Iterator[None]:
    """Go on after what only this one message or task is to blame for."""
    try:
        yield
    except Exception as error:
        if is_away(error):
            raise
        logger.exception("%s", what)


class Reconciler:
    """One daemon thread; whoever has the lock works, the others wait for it."""

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
        self._redis, self._messages, self._send = redis, messages, send
        self._lease_s = lease_s
        self._tasks = OpenTasks(redis, keys, lease_s=lease_s, record_ttl_s=record_ttl_s)
        self._lock = redis.lock(
            keys.reconciler, timeout=ELECTED_S, blocking=False, thread_local=False
        )
        self._closed = threading.Event()
        self._failed_s = float("-inf")
        self._awake_s = time.monotonic()
        self._walked_s = float("-inf")
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; a second time does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="reconciler", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread, and let another worker be elected."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=ELECTED_S)

    def run_once(self) -> None:
        """One round of the elected worker; raises what redis-py raises."""
        self._awake_s = time.monotonic()
        if self._is_just_back():
            return
        overdue = self._messages.overdue()
        if self._was_frozen():
            return
        for tag in overdue:
            with _none_stops_the_others(f"message {tag} can't be put back"):
                if self._messages.put_back(tag, only_overdue=True):
                    metrics.RECOVERED.labels("lease").inc()
                    logger.warning("message %s put back: its holder's lease has run out", tag)
        if time.monotonic() - self._walked_s > self._lease_s / 2:
            try:
                self.walk()
            finally:
                self._walked_s = time.monotonic()

    def _is_just_back(self) -> bool:
        """Whether Redis was away until a moment ago, as far as it or this process knows."""
        if time.monotonic() - self._failed_s < GRACE_S:
            return True
        servers = self._redis, self._messages.redis
        return any(server.info("server")["uptime_in_seconds"] < GRACE_S for server in servers)

    def _was_frozen(self) -> bool:
        """Whether Redis or this process stood still so long that perhaps nobody could renew.

        Asked often: between two answers there is never much to do.
        """
        now_s = time.monotonic()
        was, self._awake_s = now_s - self._awake_s > ELECTED_S, now_s
        if was:
            self._failed_s = now_s
        return was

    def walk(self) -> None:
        """Look at every open task that nobody touched for the time of a lease."""
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
            with _none_stops_the_others(f"task {task_id} can't be sent again"):
                self._send_again(task_id, suspect)

    def _send_again(self, task_id: str, suspect: Suspect) -> None:
        if (request := self._tasks.revive(task_id, suspect)) is None:
            return
        try:
            self._send(task_id, readable(request), suspect.queue)
        except (EncodeError, RecursionError):  # nested too deep: whoever claims it refuses it
            self._send(task_id, None, suspect.queue)
        metrics.RECOVERED.labels("lost").inc()
        logger.warning("task %s had no message any more; sent again", task_id)

    def _stays_elected(self) -> bool:
        try:
            return bool(self._lock.extend(ELECTED_S, replace_ttl=True)) and not self._was_frozen()
        except LockError:
            return False

    def _must_stay_elected(self) -> None:
        if not self._stays_elected():
            raise _DeposedError

    def _serve(self) -> None:
        self._awake_s = time.monotonic()
        while not self._closed.wait(LOOK_S):
            try:
                elected = (self._lock.owned() or self._lock.acquire()) and self._stays_elected()
                if not self._was_frozen() and elected:
                    self.run_once()
            except Exception as error:  # the others wait for the lock that this thread has
                away, self._failed_s = is_away(error), time.monotonic()
                logger.warning("nothing reconciled: %s", error, exc_info=None if away else error)
        try:
            self._lock.release()
        except (LockError, RedisError):
            logger.debug("was not elected, or Redis is away: the lock runs out by itself")
