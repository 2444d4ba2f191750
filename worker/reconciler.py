"""The thread that finds what was lost, on one worker at a time.

Each half second: messages whose lease has run out go back into their lists. Each half lease: tasks
that the record calls open, though no list and no worker has a message of them, get a new one; one
too many is harmless, since a claim is fenced. Waiting tasks whose deadline has passed end.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import LockError, RedisError, ResponseError

from api_contracts.connection import is_away
from api_contracts.names import DEFAULT_MODEL, MODEL_PATTERN, is_task_id, queue_name
from api_contracts.parse import parse_request
from api_contracts.records import metadata_of
from api_contracts.scripts import event_tail, load
from worker import metrics
from worker.lease import MOST_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from redis import Redis

    from api_contracts.names import Keys
    from worker.messages import Messages

logger = logging.getLogger(__name__)

#: Pause between two looks for overdue messages, in seconds.
LOOK_S = 0.5
#: How long the elected worker stays so without saying so again, in seconds.
ELECTED_S = 2.0
#: After an outage, time for every worker to renew its leases before any of them counts as run
#: out, in seconds: while Redis was away, nobody could.
GRACE_S = MOST_S + 1.0
#: Open tasks looked at by one call.
SLICE = 200
#: Of an open task's record.
_FIELDS = ("status", "queue", "lease_until", "deadline_at", "ended_at")
#: A queue that a task may be sent to: the record is the work of whoever submitted it.
_QUEUE = re.compile(rf"{re.escape(queue_name(''))}{MODEL_PATTERN[1:-1]}\Z")


@dataclass(frozen=True)
class Suspect:
    """An open task that may have no message."""

    queue: str
    #: Its score among the open tasks.
    touched: float
    #: It ended longer ago than records are kept: nobody waits to be told any more.
    is_old: bool


class Reconciler:
    """One daemon thread; whoever has the lock works, the others wait for it."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        messages: Messages,
        send: Callable[[str, Any, str], None],
        *,
        lease_s: float,
        record_ttl_s: int,
    ) -> None:
        """`redis` has the records; `send` gets a task id, its request and its queue."""
        self._redis, self._keys, self._messages, self._send = redis, keys, messages, send
        self._lease_s, self._ttl_s = lease_s, record_ttl_s
        self._revive, self._expire, self._forget, self._close = (
            load(redis, "worker", name) for name in ("revive", "expire", "forget", "close")
        )
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
            if self._messages.put_back(tag, only_overdue=True):
                metrics.RECOVERED.labels("lease").inc()
                logger.warning("message %s put back: its holder's lease has run out", tag)
        if time.monotonic() - self._walked_s > self._lease_s / 2:
            self.walk()
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
        self._forget_wishes()
        suspects = dict(self._suspects())
        if not suspects:
            return
        queues = {suspect.queue for suspect in suspects.values()}
        for number, task_id in enumerate(self._messages.ids(queues)):
            suspects.pop(task_id, None)
            if number % SLICE == 0 and not self._stays_elected():
                return
        for task_id, suspect in suspects.items():
            if self._was_frozen():
                return
            self._send_again(task_id, suspect)

    def _suspects(self) -> Iterator[tuple[str, Suspect]]:
        """Open tasks that nobody holds, as far as the record says; ends those past a deadline."""
        seconds, _ = self._redis.time()
        last, offset = seconds - self._lease_s, 0
        while True:
            found: Any = self._redis.zrange(
                self._keys.open, "-inf", last, byscore=True, offset=offset, num=SLICE,
                withscores=True,
            )  # fmt: skip
            pipeline = self._redis.pipeline(transaction=False)
            for task_id, _ in found:
                pipeline.hmget(self._keys.task(task_id.decode(errors="replace")), _FIELDS)
            answers = pipeline.execute(raise_on_error=False)
            for (name, touched), fields in zip(found, answers, strict=True):
                if (task_id := self._id(name, fields)) is None:
                    continue
                if self._is_suspect(task_id, fields, seconds):
                    queue = (fields[1] or queue_name(DEFAULT_MODEL).encode()).decode()
                    ended_s = float(fields[4] or seconds)
                    yield task_id, Suspect(queue, touched, ended_s < seconds - self._ttl_s)
            if len(found) < SLICE or not self._stays_elected():
                return
            offset += SLICE

    def _id(self, name: bytes, fields: Any) -> str | None:  # noqa: ANN401  # or an error
        """A member of the open tasks as text; None, and one less, where it or its record is odd."""
        task_id = name.decode(errors="replace")
        try:
            if isinstance(fields, RedisError):
                raise fields
            _, queue, *seconds = fields
            [float(each or 0) for each in seconds]
            if is_task_id(task_id) and (queue is None or _QUEUE.match(queue.decode())):
                return task_id
        except (ResponseError, ValueError):
            pass
        logger.error("task %r is nobody's: its record can't be read", task_id)
        self._redis.zrem(self._keys.open, name)
        return None

    def _forget_wishes(self) -> None:
        """Let go of cancels that waited for a task for as long as records are kept."""
        last = self._redis.time()[0] - self._ttl_s
        found: Any = self._redis.zrange(
            self._keys.wishes, "-inf", last, byscore=True, offset=0, num=SLICE
        )
        for name in found:
            keys = [self._keys.task(name.decode(errors="replace")), self._keys.wishes]
            try:
                self._forget(keys=keys, args=[name])
            except ResponseError as error:
                if is_away(error):
                    raise
                logger.error("the wish for %r is nobody's: %s", name, error)  # noqa: TRY400  # no fault of ours
                self._redis.zrem(self._keys.wishes, name)

    def _is_suspect(self, task_id: str, fields: Sequence[bytes | None], now_s: int) -> bool:
        status, _, lease_until, deadline_at, _ = fields
        if status == b"queued" and deadline_at and float(deadline_at) < now_s:
            with self._whatever_is_wrong_with(task_id):
                self._end_expired(task_id)
            return False
        return status != b"running" or float(lease_until or 0) + LOOK_S < now_s

    def _end_expired(self, task_id: str) -> None:
        keys = self._three(task_id)
        request: Any = self._redis.hget(keys[0], "request")
        tail = event_tail(task_id, "expired", {"step": 0, "metadata": metadata_of(request)})
        if self._expire(keys=keys, args=[task_id, tail]):
            logger.info("task %s: expired while it waited", task_id)

    def _send_again(self, task_id: str, suspect: Suspect) -> None:
        request = None
        with self._whatever_is_wrong_with(task_id):
            request = self._request(task_id, suspect)
        if request is None:
            return
        self._send(task_id, _readable(request), suspect.queue)
        metrics.RECOVERED.labels("lost").inc()
        logger.warning("task %s had no message any more; sent again", task_id)

    def _request(self, task_id: str, suspect: Suspect) -> bytes | None:
        """What to send; None when somebody has touched the task, or nobody waits for its end."""
        if suspect.is_old:
            keys = [*self._three(task_id), self._keys.checkpoint(task_id)]
            self._close(keys=keys, args=[task_id, self._ttl_s])
            return None
        keys = [self._keys.task(task_id), self._keys.open]
        request: bytes | None = self._revive(keys=keys, args=[task_id, repr(suspect.touched)])
        return request

    def _three(self, task_id: str) -> list[str]:
        return [self._keys.task(task_id), self._keys.events(task_id), self._keys.open]

    @contextmanager
    def _whatever_is_wrong_with(self, task_id: str) -> Iterator[None]:
        """Let one task go whose keys Redis or we can't read; the others are to be looked after."""
        try:
            yield
        except (ResponseError, ValueError, RecursionError) as error:
            if is_away(error):
                raise
            logger.error("task %s is let go, its record is odd: %s", task_id, error)  # noqa: TRY400  # no fault of ours
            self._redis.zrem(self._keys.open, task_id)

    def _stays_elected(self) -> bool:
        try:
            return bool(self._lock.extend(ELECTED_S, replace_ttl=True)) and not self._was_frozen()
        except LockError:
            return False

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


def _readable(request: bytes) -> Any:  # noqa: ANN401  # whatever was sent
    """The request of a record; what is no JSON any more is refused by whoever claims it."""
    try:
        return json.loads(request)
    except (ValueError, RecursionError):
        return None


def priority_of(request: Any) -> int:  # noqa: ANN401  # whatever was sent
    """The priority that a request asks for, the contract's own when it can't be read."""
    try:
        return parse_request(request).priority
    except ValueError:
        return parse_request({"prompt": "x"}).priority
