"""Celery's messages in Redis: which tasks have one, and the fault that deletes some."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from redis import Redis

from api_contracts.names import DEFAULT_MODEL, Keys, queue_lists
from tests.chaos.submissions import REMOTE_MODEL

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

#: All lists of messages.
LISTS = tuple(name for model in (DEFAULT_MODEL, REMOTE_MODEL) for name in queue_lists(model))
#: Messages, by tag, that workers have taken and not acknowledged, and when they took them.
HELD, HELD_INDEX = "sag.unacked", "sag.unacked_index"
#: Entries that one call reads, of about 1.3 KB each.
SLICE = 1000


def delete(url: str, share: float, rng: random.Random) -> frozenset[str]:
    """Delete a share of the messages, waiting or unacknowledged, whose tasks have a record.

    Without a record the reconciler could not find the task. Of a list longer than `SLICE` a random
    slice is looked at. Gives the ids of the waiting tasks.
    """
    waited = set()
    with Redis.from_url(url, socket_timeout=5, protocol=2) as redis:
        for name in queue_lists(DEFAULT_MODEL):
            more = redis.llen(name) - SLICE
            first = rng.randrange(more + 1) if more > 0 else 0
            for entry in cast("list[bytes]", redis.lrange(name, first, first + SLICE - 1)):
                task_id = _task_with_record(redis, entry, held=False)
                if rng.random() < share and task_id is not None and redis.lrem(name, 1, entry):
                    waited.add(task_id)
        held = cast("dict[bytes, bytes]", redis.hgetall(HELD))
        for tag, entry in held.items():
            if rng.random() < share and _task_with_record(redis, entry, held=True) is not None:
                redis.zrem(HELD_INDEX, tag)
                redis.hdel(HELD, tag)
    return frozenset(waited)


def count_by_task(redis: Redis) -> Counter[str | None]:
    """The number of messages of each task, waiting or held; None is for those that name none.

    Workers may run meanwhile: a message that one takes is found in a list, or among the held ones.
    """
    found = Counter(task_of(entry, held=False) for name in LISTS for entry in entries(redis, name))
    held = cast("list[bytes]", redis.hvals(HELD))
    found.update(task_of(entry, held=True) for entry in held)
    return found


def entries(redis: Redis, name: str) -> Iterator[bytes]:
    """The messages of a list, the one that is taken last first."""
    first = 0
    while found := cast("list[bytes]", redis.lrange(name, first, first + SLICE - 1)):
        yield from found
        first += SLICE


def task_of(entry: bytes, *, held: bool) -> str | None:
    """The task that a message names, if any; a held one is the first of a list."""
    try:
        whole: Any = json.loads(entry)
        task_id = (whole[0] if held else whole)["headers"]["id"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return task_id if isinstance(task_id, str) else None


def _task_with_record(redis: Redis, entry: bytes, *, held: bool) -> str | None:
    """The message's task if it has a record."""
    task_id = task_of(entry, held=held)
    known = task_id is not None and redis.hexists(Keys().task(task_id), "status")
    return task_id if known else None
