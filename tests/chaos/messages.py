"""Deletes some of Celery's messages from Redis."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from redis import Redis

from api_contracts.names import DEFAULT_MODEL, Keys, queue_lists

if TYPE_CHECKING:
    import random


def delete(url: str, share: float, rng: random.Random) -> frozenset[str]:
    """Delete a share of the messages, waiting or unacknowledged, whose tasks have a record.

    Without a record the reconciler could not find the task. Gives the ids of the waiting tasks.
    """
    waited = set()
    with Redis.from_url(url, socket_timeout=5, protocol=2) as redis:
        for name in queue_lists(DEFAULT_MODEL):
            for entry in cast("list[bytes]", redis.lrange(name, 0, -1)):
                task_id = _task_with_record(redis, entry, held=False)
                if rng.random() < share and task_id is not None and redis.lrem(name, 1, entry):
                    waited.add(task_id)
        held = cast("dict[bytes, bytes]", redis.hgetall("sag.unacked"))
        for tag, entry in held.items():
            if rng.random() < share and _task_with_record(redis, entry, held=True) is not None:
                redis.zrem("sag.unacked_index", tag)
                redis.hdel("sag.unacked", tag)
    return frozenset(waited)


def _task_with_record(redis: Redis, entry: bytes, *, held: bool) -> str | None:
    """The message's task if it has a record; an unacknowledged one is the first of a list."""
    try:
        whole: Any = json.loads(entry)
        task_id = (whole[0] if held else whole)["headers"]["id"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    known = isinstance(task_id, str) and redis.hexists(Keys().task(task_id), "status")
    return task_id if known else None
