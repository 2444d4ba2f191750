"""Workers that wait for a message, and those that were woken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import names
from api_contracts.redis_io.scripts import load
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, new_tag
from worker.broker.intake import WOKEN_S, WaitingList

if TYPE_CHECKING:
    from redis import Redis

    from tests.record.box import Box


def woken(redis: Redis, *owners: str) -> list[str]:
    """Those of the owners that were woken."""
    return [owner for owner in owners if redis.exists(f"{names.WAKE_PREFIX}{owner}")]


def wait(box: Box) -> None:
    """Have a consumer wait for a message, of which there is none."""
    with pytest.raises(TimeoutError):
        box.connection.drain_events(timeout=0.05)


def ask(
    redis: Redis, namespace: str, owner: str, tasks: int, *, leaves: bool = True, below: int = 1000
) -> Any:
    """Ask for a message as a worker that runs `tasks` tasks."""
    lists = names.queue_lists(namespace)
    origins = [part for each in names.PRIORITIES for part in (names.queue_name(namespace), each)]
    return load(redis, "worker.broker", "take")(
        unacked=UNACKED, unacked_index=UNACKED_INDEX, wake=f"{names.WAKE_PREFIX}{owner}",
        lists=lists, tag=new_tag(owner), lease_s=30, max_bytes=10**6, owner=owner, tasks=tasks,
        leaves=leaves and tasks > 0, woken_s=WOKEN_S, below=below,
        origins=origins,
    )  # fmt: skip


def lists_of(namespace: str) -> list[WaitingList]:
    queue = names.queue_name(namespace)
    return [WaitingList(names.queue_list(queue, each), queue, each) for each in names.PRIORITIES]
