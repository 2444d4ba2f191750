"""Closing: from then on record and events have a time to live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationClient, TaskStatus
from tests.record.owners import PROGRESS, TTL_S, append, opened, take

if TYPE_CHECKING:
    from redis import Redis

    from worker.record.task_record import TaskRecord


def test_a_record_has_a_ttl_once_it_is_closed(
    records: TaskRecord, redis: Redis, client: GenerationClient, task_id: str
) -> None:
    """Record and events get a time to live only when the task is closed.

    Its message may wait longer than that; the claim must find the end.
    """
    keys = client.keys
    names = (keys.task(task_id), keys.events(task_id))

    def lives() -> list[Any]:
        return [redis.ttl(name) for name in names]

    assert lives() == [-1, -1]
    claim = take(records, task_id)
    append(records, claim, "progress", PROGRESS)
    records.requeue(claim, {"reason": "r"}, counts=False)
    assert lives() == [-1, -1]
    claim = take(records, task_id)
    client.handle(task_id).cancel()
    redis.set(keys.checkpoint(task_id), b"latents")
    assert opened(redis, keys) == {task_id}
    assert records.finish(claim, TaskStatus.CANCELLED, {"step": 1}, {"step": 1})
    assert lives() == [-1, -1]
    assert opened(redis, keys) == {task_id}
    records.close(task_id)
    assert all(0 < left <= TTL_S for left in lives())
    assert not redis.exists(keys.checkpoint(task_id))
    assert opened(redis, keys) == set()


@pytest.mark.parametrize("ends", ["while it waits", "by its worker"])
def test_a_task_that_is_open_is_not_closed(
    records: TaskRecord, redis: Redis, client: GenerationClient, task_id: str, ends: str
) -> None:
    """Closing a task that has not ended does nothing."""
    claim = take(records, task_id) if ends == "by its worker" else None
    records.close(task_id)
    assert opened(redis, client.keys) == {task_id}
    assert redis.ttl(client.keys.task(task_id)) == -1
    if claim is not None:
        assert records.finish(claim, TaskStatus.CANCELLED, {"step": 0}, {"step": 0})
    else:
        client.handle(task_id).cancel()
    records.close(task_id)
    assert opened(redis, client.keys) == set()
