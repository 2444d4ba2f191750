"""The open tasks of a namespace, as the elected reconciler walks them.

Knows their records, and neither messages nor the election. A record that can't be read is removed
from the open tasks, logged and counted in one place, `_quarantine`, so that it stops no other task.
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
from api_contracts.names import (
    DEFAULT_MODEL,
    MAX_MESSAGE_BYTES,
    MODEL_PATTERN,
    is_task_id,
    queue_name,
)
from api_contracts.parse import parse_request
from api_contracts.pushes import PushKind
from api_contracts.redis_io.connection import is_unavailable
from api_contracts.redis_io.scripts import event_tail, load
from worker import metrics
from worker.record.push_queue import WRONG_TYPE, PushQueue
from worker.recovery.timing import LOST_TASK_DELAY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from api_contracts.names import Keys

logger = logging.getLogger(__name__)

#: Open tasks read by one call.
SLICE = 200
#: The fields of a record that are read, as `_Record` has them.
_FIELDS = ("status", "queue", "lease_until", "deadline_at", "ended_at", "told")
#: A queue that a task may be sent to: producers can write records, too.
_QUEUE = re.compile(rf"{re.escape(queue_name(''))}{MODEL_PATTERN[1:-1]}\Z")


@dataclass(frozen=True)
class _Record:
    """The part of an open task's record that is read. Times are Unix seconds."""

    status: str
    queue: str
    lease_until: float
    deadline_at: float | None
    ended_at: float | None
    #: Whether its pushes are queued.
    pushes_queued: bool

    @classmethod
    def parse(cls, fields: list[bytes | None]) -> _Record:
        """Raises ValueError for values that no worker writes."""
        status, queue, lease_until, deadline_at, ended_at, told = fields
        name = (queue or queue_name(DEFAULT_MODEL).encode()).decode()
        if not _QUEUE.match(name):
            message = f"{name!r} is not a queue of tasks"
            raise ValueError(message)
        return cls(
            (status or b"").decode(),
            name,
            float(lease_until or 0),
            float(deadline_at) if deadline_at else None,
            float(ended_at) if ended_at else None,
            told is not None,
        )


@dataclass(frozen=True)
class Suspect:
    """An open task that may have no message."""

    queue: str
    #: Its score in `ns:open`: when it was last updated.
    touched: float
    #: Whether it ended longer ago than records are kept: its result is no longer needed.
    is_old: bool


class OpenTasks:
    """Reads and repairs records; raises redis-py's exceptions."""

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
        """Open tasks that were not updated for one lease period and that no worker runs.

        Meanwhile, tasks past their deadline are ended, and the pushes of ended ones queued. Stops
        between two slices when `goes_on` returns False.
        """
        now_s, _ = self._redis.time()
        last, offset = now_s - self._lease_s, 0
        while True:
            found = self._oldest(self._keys.open, last, offset)
            pipeline = self._redis.pipeline(transaction=False)
            for member, _ in found:
                pipeline.hmget(self._keys.task(member.decode(errors="replace")), _FIELDS)
            answers = pipeline.execute(raise_on_error=False)
            for (member, touched), fields in zip(found, answers, strict=True):
                with self._quarantine(self._keys.open, member):
                    task_id, record = _read(member, fields)
                    if self._is_suspect(task_id, record, now_s):
                        is_old = (record.ended_at or now_s) < now_s - self._ttl_s
                        yield task_id, Suspect(record.queue, touched, is_old)
            if len(found) < SLICE or not goes_on():
                return
            offset += SLICE

    def revive(self, task_id: str, suspect: Suspect) -> bytes | None:
        """The request to send again; None when the task was updated since, or is too old."""
        with self._quarantine(self._keys.open, task_id.encode()):
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
                max_bytes=MAX_MESSAGE_BYTES,
            )
            return request
        return None

    def forget_pending_cancels(self) -> None:
        """Delete requests to cancel unknown tasks that are older than records may become."""
        last = self._redis.time()[0] - self._ttl_s
        pending = self._keys.pending_cancels
        for member, _ in self._oldest(pending, last, 0):
            task = self._keys.task(member.decode(errors="replace"))
            with self._quarantine(pending, member):
                self._drop_cancel(task=task, pending_cancels=pending, id=member)

    def _oldest(self, key: str, last: float, offset: int) -> list[tuple[bytes, float]]:
        """A slice of the members up to a score, with scores; a key of another type is deleted."""
        try:
            found: Any = self._redis.zrange(
                key, "-inf", last, byscore=True, offset=offset, num=SLICE, withscores=True
            )
        except ResponseError as error:
            if WRONG_TYPE not in str(error):
                raise
            logger.error("%s is not a sorted set, deleting it: %s", key, error)  # noqa: TRY400  # not our bug
            self._redis.delete(key)
            return []
        return list(found)

    def _is_suspect(self, task_id: str, record: _Record, now_s: int) -> bool:
        match record.status:
            case "queued" if record.deadline_at and record.deadline_at < now_s:
                self._end_expired(task_id)
                return False
            case "queued":
                return True
            case "running":
                return record.lease_until + LOST_TASK_DELAY_S < now_s
            case _:
                # A task that ended while queued: its message may stay in the queue for long.
                if not record.pushes_queued:
                    self._pushes.add(task_id)
                return True

    def _end_expired(self, task_id: str) -> None:
        keys = self._keys_of(task_id)
        request: Any = self._redis.hget(keys["task"], "request")
        tail = event_tail(task_id, "expired", {"step": 0, "metadata": metadata_of(request)})
        if self._expire(**keys, id=task_id, tail=tail):
            logger.info("task %s: expired in the queue", task_id)

    def _keys_of(self, task_id: str) -> dict[str, str]:
        return {
            "task": self._keys.task(task_id),
            "events": self._keys.events(task_id),
            "open": self._keys.open,
        }

    @contextmanager
    def _quarantine(self, key: str, member: bytes) -> Iterator[None]:
        """Remove a member from its set when its record can't be read."""
        try:
            yield
        except (ResponseError, ValueError, RecursionError) as error:
            if is_unavailable(error) or isinstance(error, NoPermissionError):
                raise
            task_id = member.decode(errors="replace")
            logger.error("task %r: unreadable record, removed from %s: %s", task_id, key, error)  # noqa: TRY400  # not our bug
            metrics.REJECTED.labels("odd_record").inc()
            self._redis.zrem(key, member)


def _read(member: bytes, fields: Any) -> tuple[str, _Record]:  # noqa: ANN401  # a list, or an error
    """An open task's id and record; raises ValueError or what Redis answered instead."""
    if isinstance(fields, RedisError):
        raise fields
    if not is_task_id(task_id := member.decode()):
        message = "not a task id"
        raise ValueError(message)
    return task_id, _Record.parse(fields)


def request_of(text: bytes) -> Any:  # noqa: ANN401  # any JSON
    """The request of a record; None when it is not JSON, which the next claim refuses."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def priority_of(request: Any) -> int:  # noqa: ANN401  # any JSON
    """The priority that a request asks for; the default when the request is not valid."""
    try:
        return parse_request(request).priority
    except ValueError:
        return parse_request({"prompt": "x"}).priority
