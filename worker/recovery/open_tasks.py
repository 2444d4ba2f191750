"""The open tasks of a namespace, as the elected reconciler walks them.

Knows their records, and neither messages nor the election. A record that can't be read is removed
from the open tasks, see `quarantine`.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from api_contracts.client.sender import Waiting
from api_contracts.errors import InvalidRequest
from api_contracts.names import (
    DEFAULT_MODEL,
    DEFAULT_PRIORITY,
    MAX_MESSAGE_BYTES,
    MODEL_PATTERN,
    is_task_id,
    queue_name,
)
from api_contracts.parse import parse_request
from api_contracts.pushes import PushKind
from api_contracts.redis_io.scripts import load
from worker.recovery.quarantine import known_type, quarantine
from worker.recovery.timing import LOST_TASK_DELAY_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.push_queue import PushQueue

logger = logging.getLogger(__name__)

#: Open tasks read by one call.
SLICE = 500
#: The fields of a record that are read, as `_Record` has them.
_FIELDS = ("status", "queue", "lease_until", "ended_at", "told")
#: A queue that a task may be sent to: producers can write records, too.
_QUEUE = re.compile(rf"{re.escape(queue_name(''))}{MODEL_PATTERN[1:-1]}\Z")


@dataclass(frozen=True)
class _Record:
    """The part of an open task's record that is read. Times are Unix seconds."""

    status: str
    queue: str
    lease_until: float
    ended_at: float | None
    #: Whether its pushes are queued.
    pushes_queued: bool

    @classmethod
    def parse(cls, fields: list[bytes | None]) -> _Record:
        """Raises ValueError for values that no worker writes."""
        status, queue, lease_until, ended_at, told = fields
        name = (queue or queue_name(DEFAULT_MODEL).encode()).decode()
        if not _QUEUE.match(name):
            message = f"{name!r} is not a queue of tasks"
            raise ValueError(message)
        return cls(
            (status or b"").decode(),
            name,
            float(lease_until or 0),
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

    def __init__(self, redis: Redis, keys: Keys, pushes: PushQueue, record_ttl_s: int) -> None:
        """`redis` has the records."""
        self._redis, self._keys, self._pushes = redis, keys, pushes
        self._ttl_s = record_ttl_s
        self._resend, self._drop_cancel, self._close = (
            load(redis, "worker.record", name) for name in ("resend", "drop_cancel", "close")
        )

    def now_s(self) -> float:
        """Redis's clock."""
        seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    def slices(self) -> Iterator[list[tuple[bytes, float]]]:
        """All open tasks, a slice at a time: member, and when it was last written."""
        cursor = -1
        while cursor:
            found: Any = 0, []
            with known_type(self._redis, self._keys.open):
                found = self._redis.zscan(self._keys.open, max(cursor, 0), count=SLICE)
            cursor, members = found
            yield members

    def suspects(self, members: Sequence[tuple[bytes, float]]) -> Iterator[tuple[str, Suspect]]:
        """Those of some open tasks, none of which has a message, that no worker runs.

        Meanwhile, the pushes of ended ones are queued.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for member, _ in members:
            pipeline.hmget(self._keys.task(member.decode(errors="replace")), _FIELDS)
        answers, now_s = pipeline.execute(raise_on_error=False), self.now_s()
        for (member, touched), fields in zip(members, answers, strict=True):
            with quarantine(self._redis, self._keys.open, member):
                task_id, record = _read(member, fields)
                if self._is_suspect(task_id, record, now_s):
                    is_old = (record.ended_at or now_s) < now_s - self._ttl_s
                    yield task_id, Suspect(record.queue, touched, is_old)

    def revive(self, task_id: str, suspect: Suspect) -> bytes | None:
        """The request to send again; None when the task was updated since, or is too old."""
        with quarantine(self._redis, self._keys.open, task_id.encode()):
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
        last, pending = self.now_s() - self._ttl_s, self._keys.pending_cancels
        found: Any = []
        with known_type(self._redis, pending):
            found = self._redis.zrange(pending, "-inf", last, byscore=True, offset=0, num=SLICE)
        for member in found:
            task = self._keys.task(member.decode(errors="replace"))
            with quarantine(self._redis, pending, member):
                self._drop_cancel(task=task, pending_cancels=pending, id=member)

    def _is_suspect(self, task_id: str, record: _Record, now_s: float) -> bool:
        match record.status:
            case "queued":
                return True
            case "running":
                return record.lease_until + LOST_TASK_DELAY_S < now_s
            case _:
                # A task that ended while queued: its message may stay in the queue for long.
                if not record.pushes_queued:
                    self._pushes.add(task_id)
                return True

    def _keys_of(self, task_id: str) -> dict[str, str]:
        return {
            "task": self._keys.task(task_id),
            "events": self._keys.events(task_id),
            "open": self._keys.open,
        }


def _read(member: bytes, fields: Any) -> tuple[str, _Record]:  # noqa: ANN401  # a list, or an error
    """An open task's id and record; raises ValueError or what Redis answered instead."""
    if isinstance(fields, RedisError):
        raise fields
    if not is_task_id(task_id := member.decode()):
        message = "not a task id"
        raise ValueError(message)
    return task_id, _Record.parse(fields)


def message_of(task_id: str, request: bytes, queue: str) -> Waiting:
    """The message that sends a task again; `request` is its record's.

    A request that is not JSON becomes null, which the next claim refuses.
    """
    try:
        text = request.decode()
        priority = parse_request(json.loads(text)).priority
    except InvalidRequest:
        priority = DEFAULT_PRIORITY
    except (ValueError, RecursionError):
        text, priority = "null", DEFAULT_PRIORITY
    return Waiting(task_id, text, queue, priority)
