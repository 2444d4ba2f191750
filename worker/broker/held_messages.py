"""The broker's messages: which are held and by whom, for how long, and which ids wait.

Owns the book of what each worker holds: kombu's `unacked` and `unacked_index`, under keys of its
own. Three things differ from kombu: a message gets its tag when it is taken, so that nobody's late
acknowledgement touches another's delivery; the index says when a lease runs out, by Redis's clock;
a message is put back by one script. Knows nothing of records.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from api_contracts.names import PRIORITIES, queue_list
from api_contracts.redis_io.scripts import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from redis import Redis

#: Keys of our own: another Celery worker on the same database would take its own scores for ours.
UNACKED, UNACKED_INDEX = "sag.unacked", "sag.unacked_index"
#: Largest message that is taken, in bytes: twice the largest request that the contract allows.
MAX_MESSAGE_BYTES = 8 * 2**20
#: How long after its lease a message is put back, in seconds: the task's own lease, renewed just
#: after it, must have run out, or its next claim is told that the task is held.
MARGIN_S = 0.5
#: Messages looked at by one call, and bytes after which it looks at no further ones: Redis serves
#: nobody else meanwhile, and reads some 50 MB of JSON in a second.
SLICE, SLICE_BYTES = 500, 2**20


def new_tag(owner: str) -> str:
    """A delivery tag that says who holds the message."""
    return f"{owner}/{uuid.uuid4().hex}"


class HeldMessages:
    """Looks after held messages. Thread-safe; every method raises what redis-py raises."""

    def __init__(self, redis: Redis) -> None:
        """`redis` is a connection to the broker."""
        self.redis = redis
        self._renew, self._put_back, self._waiting = (
            load(redis, "worker.broker", name)
            for name in ("renew", "requeue_message", "waiting_ids")
        )

    def renew(self, tags: Sequence[str], lease_s: float) -> None:
        """Hold messages for `lease_s` from now; asks the server also when there are none."""
        self._renew(unacked_index=UNACKED_INDEX, lease_s=lease_s + MARGIN_S, tags=tags)

    def overdue(self, most: int = 100) -> list[str]:
        """Tags of messages whose lease has run out, the longest overdue first."""
        seconds, microseconds = self.redis.time()
        now_s = seconds + microseconds / 1e6
        tags: Any = self.redis.zrange(
            UNACKED_INDEX,
            "-inf",
            now_s,
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

    def held(self, tag: str) -> tuple[dict[str, Any], str] | None:
        """A held message and its queue; None when it is held no more or is no message."""
        try:
            message, _, queue = json.loads(self.redis.hget(UNACKED, tag) or "null")
            json.dumps(message)  # what is nested too deep for that can't be put back either
        except (ValueError, TypeError, RecursionError):
            return None
        return (message, queue) if isinstance(message, dict) else None

    def put_back(self, tag: str, *, only_overdue: bool = False, first: bool = True) -> bool:
        """Put a message back before the others, or behind them; False when somebody else did.

        What is no message is dropped.
        """
        held = self.held(tag)
        message, queue = held or ({}, "")
        text = json.dumps(redelivered(message)) if held else ""
        moved = self._put_back(
            unacked=UNACKED,
            unacked_index=UNACKED_INDEX,
            list=_list(queue, message),
            tag=tag,
            message=text,
            push="RPUSH" if first else "LPUSH",
            only_overdue=only_overdue,
        )
        return bool(moved) and held is not None

    def ids(self, queues: Iterable[str], between: Callable[[], object] = bool) -> Iterator[str]:
        """The task ids of all messages, first of those that wait, then of those that are held.

        `between` is called between two questions to Redis: each may take long.

        In this order and each list from its newest end, a message that is taken meanwhile is
        found all the same; only one that is put back meanwhile may be missed.
        """
        for name in (queue_list(queue, each) for queue in queues for each in PRIORITIES):
            first, count = 0, 1
            while count:
                count, *ids = self._waiting(
                    list=name,
                    first=first,
                    last=first + SLICE - 1,
                    slice_bytes=SLICE_BYTES,
                    max_bytes=MAX_MESSAGE_BYTES,
                )
                yield from (each.decode() for each in ids)
                between()
                first += count
        for number, (tag, _) in enumerate(self.redis.hscan_iter(UNACKED, count=SLICE)):
            if number % SLICE == 0:
                between()
            held = self.held(tag.decode())
            task_id = task_id_of(held[0]) if held else None
            if task_id is not None:
                yield task_id


def task_id_of(message: dict[str, Any]) -> str | None:
    """The id in a message's headers, if it is one at all."""
    headers = message.get("headers")
    task_id = headers.get("id") if isinstance(headers, dict) else None
    return task_id if isinstance(task_id, str) else None


def redelivered(message: dict[str, Any]) -> dict[str, Any]:
    """The message, marked as one that was delivered before, as AMQP and kombu mark it."""
    marked = dict(message)
    given = message.get("properties")
    properties = dict(given) if isinstance(given, dict) else {}
    info = properties.get("delivery_info")
    properties["delivery_info"] = (info if isinstance(info, dict) else {}) | {"redelivered": True}
    marked["properties"] = properties
    return marked


def _list(queue: str, message: dict[str, Any]) -> str:
    """The list of a queue that a message's priority says; 0 without one."""
    properties = message.get("properties")
    priority = properties.get("priority") if isinstance(properties, dict) else None
    if not isinstance(priority, int):
        return queue
    return queue_list(queue, max(PRIORITIES[0], min(priority, PRIORITIES[-1])))
