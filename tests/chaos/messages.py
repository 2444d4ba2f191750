"""Celery's messages as they lie in Redis, and how to lose some."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from redis import Redis

from api_contracts.names import DEFAULT_MODEL, Keys, queue_lists

if TYPE_CHECKING:
    import random


def lose(url: str, share: float, rng: random.Random) -> frozenset[str]:
    """Take away a share of the messages, waiting or held, whose tasks have a record.

    Of the others nothing would be left by which anybody could find them. Gives the ids of the
    tasks that waited.
    """
    waited = set()
    with Redis.from_url(url, socket_timeout=5, protocol=2) as redis:
        for name in queue_lists(DEFAULT_MODEL):
            for entry in cast("list[bytes]", redis.lrange(name, 0, -1)):
                task_id = _recorded(redis, entry, held=False)
                if rng.random() < share and task_id is not None and redis.lrem(name, 1, entry):
                    waited.add(task_id)
        held = cast("dict[bytes, bytes]", redis.hgetall("sag.unacked"))
        for tag, entry in held.items():
            if rng.random() < share and _recorded(redis, entry, held=True) is not None:
                redis.zrem("sag.unacked_index", tag)
                redis.hdel("sag.unacked", tag)
    return frozenset(waited)


def _recorded(redis: Redis, entry: bytes, *, held: bool) -> str | None:
    """The message's task if it has a record; a held message stands first in a list of three."""
    try:
        whole: Any = json.loads(entry)
        task_id = (whole[0] if held else whole)["headers"]["id"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    known = isinstance(task_id, str) and redis.hexists(Keys().task(task_id), "status")
    return task_id if known else None
