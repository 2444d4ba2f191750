"""The open tasks of a namespace, as an elected reconciler walks them.

Knows their records, and neither messages nor the election. What nobody can read is let go, so that
one odd record stops nobody else's.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from api_contracts.client.records import metadata_of
from api_contracts.names import DEFAULT_MODEL, MODEL_PATTERN, is_task_id, queue_name
from api_contracts.parse import parse_request
from api_contracts.pushes import PushKind
from api_contracts.redis_io.connection import is_away
from api_contracts.redis_io.scripts import event_tail, load
from worker.record.push_queue import WRONG_TYPE, PushQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from redis import Redis

    from api_contracts.names import Keys

logger = logging.getLogger(__name__)

#: Open tasks looked at by one call.
SLICE = 200
#: How long after its lease a task is taken for lost, in seconds.
LATE_S = 0.5
#: Of an open task's record.
_FIELDS = ("status", "queue", "lease_until", "deadline_at", "ended_at", "told")
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


class OpenTasks:
    """Reads and mends their records; raises what redis-py raises."""

    def __init__(self, redis: Redis, keys: Keys, *, lease_s: float, record_ttl_s: int) -> None:
        """`redis` has the records."""
        self._redis, self._keys = redis, keys
        self._lease_s, self._ttl_s = lease_s, record_ttl_s
        self._pushes = PushQueue(redis, keys, record_ttl_s)
        self._resend, self._expire, self._drop_cancel, self._close = (
            load(redis, "worker.record", name)
            for name in ("resend", "expire", "drop_cancel", "close")
        )

    def suspects(self, goes_on: Callable[[], bool]) -> Iterator[tuple[str, Suspect]]:
        """Those untouched for a lease that nobody holds, as far as the record says.

        On the way those past a deadline end, and of those that have ended the pushes are noted.
        Stops between two slices when `goes_on` says so.
        """
        seconds, _ = self._redis.time()
        last, offset = seconds - self._lease_s, 0
        while True:
            found = self._oldest(self._keys.open, last, offset)
            pipeline = self._redis.pipeline(transaction=False)
            for member, _ in found:
                pipeline.hmget(self._keys.task(member.decode(errors="replace")), _FIELDS)
            answers = pipeline.execute(raise_on_error=False)
            for (member, touched), fields in zip(found, answers, strict=True):
                if (task_id := self._id(member, fields)) is None:
                    continue
                if self._is_suspect(task_id, fields, seconds):
                    queue = (fields[1] or queue_name(DEFAULT_MODEL).encode()).decode()
                    ended_s = float(fields[4] or seconds)
                    yield task_id, Suspect(queue, touched, ended_s < seconds - self._ttl_s)
            if len(found) < SLICE or not goes_on():
                return
            offset += SLICE

    def revive(self, task_id: str, suspect: Suspect) -> bytes | None:
        """The request to send again; None when somebody has touched the task, or nobody waits."""
        with self._whatever_is_wrong_with(task_id):
            if suspect.is_old:
                self._close(
                    **self._keys_of(task_id),
                    checkpoint=self._keys.checkpoint(task_id),
                    pushes=self._keys.pushes,
                    id=task_id,
                    record_ttl_s=self._ttl_s,
                    kinds=PushKind,
                )
                return None
            request: bytes | None = self._resend(
                task=self._keys.task(task_id),
                open=self._keys.open,
                id=task_id,
                touched_at=suspect.touched,
            )
            return request
        return None

    def forget_pending_cancels(self) -> None:
        """Let go of cancels that waited for a task for as long as records are kept."""
        last = self._redis.time()[0] - self._ttl_s
        for name, _ in self._oldest(self._keys.pending_cancels, last, 0):
            task = self._keys.task(name.decode(errors="replace"))
            try:
                self._drop_cancel(task=task, pending_cancels=self._keys.pending_cancels, id=name)
            except ResponseError as error:
                if is_away(error):
                    raise
                logger.error("the wish for %r is nobody's: %s", name, error)  # noqa: TRY400  # no fault of ours
                self._redis.zrem(self._keys.pending_cancels, name)

    def _oldest(self, key: str, last: float, offset: int) -> list[tuple[bytes, float]]:
        """A slice of the members up to a score, with their scores; a key of another type goes."""
        try:
            found: Any = self._redis.zrange(
                key, "-inf", last, byscore=True, offset=offset, num=SLICE, withscores=True
            )
        except ResponseError as error:
            if WRONG_TYPE not in str(error):
                raise
            logger.error("%s is no sorted set and goes: somebody else wrote it", key)  # noqa: TRY400  # no fault of ours
            self._redis.delete(key)
            return []
        return list(found)

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

    def _is_suspect(self, task_id: str, fields: Sequence[bytes | None], now_s: int) -> bool:
        status, _, lease_until, deadline_at, _, told = fields
        match status:
            case b"queued" if deadline_at and float(deadline_at) < now_s:
                with self._whatever_is_wrong_with(task_id):
                    self._end_expired(task_id)
                return False
            case b"running":
                return float(lease_until or 0) + LATE_S < now_s
            case b"queued":
                return True
            case _:
                # A task that ended while it waited has a message that may lie there for long.
                if told is None:
                    with self._whatever_is_wrong_with(task_id):
                        self._pushes.note(task_id)
                return True

    def _end_expired(self, task_id: str) -> None:
        keys = self._keys_of(task_id)
        request: Any = self._redis.hget(keys["task"], "request")
        tail = event_tail(task_id, "expired", {"step": 0, "metadata": metadata_of(request)})
        if self._expire(**keys, id=task_id, tail=tail):
            logger.info("task %s: expired while it waited", task_id)

    def _keys_of(self, task_id: str) -> dict[str, str]:
        return {
            "task": self._keys.task(task_id),
            "events": self._keys.events(task_id),
            "open": self._keys.open,
        }

    @contextmanager
    def _whatever_is_wrong_with(self, task_id: str) -> Iterator[None]:
        """Let one task go whose keys Redis or we can't read; the others are to be looked after."""
        try:
            yield
        except (ResponseError, ValueError, RecursionError) as error:
            if is_away(error) or isinstance(error, NoPermissionError):
                raise
            logger.error("task %s is let go, its record is odd: %s", task_id, error)  # noqa: TRY400  # no fault of ours
            self._redis.zrem(self._keys.open, task_id)


def readable(request: bytes) -> Any:  # noqa: ANN401  # whatever was sent
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
