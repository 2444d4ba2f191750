"""The messages that workers hold, and the task ids of those that wait.

Replaces kombu's `unacked` hash and index, under other keys. Three things differ from kombu: a
message gets its delivery tag when it is taken, so that a late acknowledgement never affects another
delivery; the index has the end of each lease by Redis's clock; one script requeues a message. Knows
no task record.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from api_contracts.names import (
    MAX_MESSAGE_BYTES,
    PRIORITIES,
    WAKE_PREFIX,
    is_task_id,
    is_urgent,
    queue_list,
    ready_key,
    wake_below,
)
from api_contracts.redis_io.connection import WRONG_TYPE
from api_contracts.redis_io.scripts import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis import Redis

#: Not kombu's names: another Celery worker on the same database would misread the scores.
UNACKED, UNACKED_INDEX = "sag.unacked", "sag.unacked_index"
#: Pause before a message is requeued after an error, in seconds: it may be taken again at once.
REQUEUE_PAUSE_S = 1.0
#: Members that one call reads of a set.
SLICE = 500


def new_tag(owner: str) -> str:
    """A delivery tag that names the process which holds the message."""
    return f"{owner}/{uuid.uuid4().hex}"


class HeldMessage(NamedTuple):
    """A message that a worker holds. A producer wrote it, so its fields may have any values."""

    message: dict[str, Any]
    #: Of the list that it was in; an earlier version did not store it.
    list_priority: int | None
    queue: str

    @classmethod
    def parse(cls, raw: bytes | None) -> HeldMessage | None:
        """The message in an entry of `UNACKED`; None for anything else."""
        try:
            message, list_priority, queue = json.loads(raw or "null")
            json.dumps(message)  # one nested too deep to be written again can't be requeued
        except (ValueError, TypeError, RecursionError):
            return None
        known = list_priority if list_priority in PRIORITIES else None
        return cls(message, known, queue) if isinstance(message, dict) else None

    @property
    def task_id(self) -> str | None:
        """The task id in the headers, if it is valid."""
        headers = self.message.get("headers")
        task_id = headers.get("id") if isinstance(headers, dict) else None
        return task_id if is_task_id(task_id) else None

    @property
    def priority(self) -> int:
        """The message's own priority, but not before that of its list, which it is without one."""
        own, first = self._properties.get("priority"), self.list_priority or PRIORITIES[0]
        if not isinstance(own, int):
            return first
        return max(first, min(own, PRIORITIES[-1]))

    def redelivered(self) -> str:
        """The message's JSON, marked as delivered before, as AMQP and kombu mark it."""
        info = self._properties.get("delivery_info")
        marked = (info if isinstance(info, dict) else {}) | {"redelivered": True}
        properties = self._properties | {"delivery_info": marked}
        return json.dumps(self.message | {"properties": properties})

    @property
    def _properties(self) -> dict[str, Any]:
        given = self.message.get("properties")
        return given if isinstance(given, dict) else {}


class MessageIds(NamedTuple):
    """The task ids of some messages."""

    cursor: bytes
    #: Number of messages read, with and without an id.
    read: int
    #: What that cost Redis, in bytes that it copies.
    cost: int
    ids: list[bytes]


class HeldMessages:
    """Renews, requeues and lists held messages. Thread-safe; raises what redis-py raises."""

    def __init__(self, redis: Redis) -> None:
        """`redis` is a connection to the broker."""
        self.redis = redis
        self._renew, self._requeue, self._ids = (
            load(redis, "worker.broker", name)
            for name in ("renew", "requeue_message", "message_ids")
        )

    def renew(self, tags: Sequence[str], lease_s: float) -> None:
        """Set the leases of messages to `lease_s` from now; calls Redis even without tags."""
        if tags:
            self._renew(unacked_index=UNACKED_INDEX, lease_s=lease_s, tags=tags)
        else:
            self.redis.ping()

    def overdue(self, most: int = 100) -> list[str]:
        """Tags of messages whose lease has run out, the longest overdue first."""
        seconds, microseconds = self.redis.time()
        tags: Any = self.redis.zrange(
            UNACKED_INDEX,
            "-inf",
            seconds + microseconds / 1e6,
            byscore=True,
            offset=0,
            num=most,
        )
        return [tag.decode() for tag in tags]

    def held_by(self, owner: str) -> list[str]:
        """Tags of the messages that a process holds."""
        literal = "".join(f"\\{c}" if c in "*?[\\" else c for c in owner)
        found = self.redis.zscan_iter(UNACKED_INDEX, match=f"{literal}/*", count=SLICE)
        tags = {tag.decode() for tag, _ in found}
        return sorted(tag for tag in tags if tag.rpartition("/")[0] == owner)

    def held(self, tag: str) -> HeldMessage | None:
        """A held message; None when it is no longer held, or the entry is not a message."""
        raw: Any = self.redis.hget(UNACKED, tag)
        return HeldMessage.parse(raw)

    def requeue(self, tag: str, *, only_overdue: bool = False, first: bool = True) -> bool:
        """Requeue a message before or behind the waiting ones; False when another process did.

        An entry that is not a message is dropped.
        """
        held = self.held(tag)
        queue, priority = (held.queue, held.priority) if held else ("", PRIORITIES[0])
        moved = self._requeue(
            unacked=UNACKED,
            unacked_index=UNACKED_INDEX,
            list=queue_list(queue, priority),
            ready=ready_key(queue),
            tag=tag,
            message=held.redelivered() if held else None,
            push="RPUSH" if first else "LPUSH",
            only_overdue=only_overdue,
            below=wake_below(urgent=is_urgent(priority)),
        )
        return bool(moved) and held is not None

    def retire(self, owner: str, queues: Iterable[str]) -> None:
        """Remove a process that ends, or has ended, from the workers that are ready."""
        pipeline = self.redis.pipeline(transaction=False)
        for queue in queues:
            pipeline.zrem(ready_key(queue), owner)
        pipeline.delete(f"{WAKE_PREFIX}{owner}")
        pipeline.execute()

    def lists(self, queues: Iterable[str]) -> list[str]:
        """The lists of these queues in which messages wait; one of another type is left out."""
        names = [queue_list(queue, each) for queue in queues for each in PRIORITIES]
        pipeline = self.redis.pipeline(transaction=False)
        for name in names:
            pipeline.llen(name)
        lengths = pipeline.execute(raise_on_error=False)
        for length in lengths:
            if isinstance(length, RedisError) and WRONG_TYPE not in str(length):
                raise length
        return [
            n
            for n, length in zip(names, lengths, strict=True)
            if isinstance(length, int) and length
        ]

    def ids(self, messages: str, cursor: bytes | int, count: int) -> MessageIds:
        """Task ids of some messages in a list, from its newest end, or in `UNACKED`.

        Begin with cursor 0 and go on with the one that is returned, until it is `b"0"`. Messages
        that are in one list all the time are found; one that is requeued meanwhile may be missed.
        """
        following, read, cost, *ids = self._ids(
            messages=messages, cursor=cursor, count=count, max_bytes=MAX_MESSAGE_BYTES
        )
        return MessageIds(following, read, cost, ids)
