"""Cancelling a task in each of its states."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationCancelled, GenerationClient, TaskStatus
from tests.record.owners import ERROR, PROGRESS, append, kinds, opened, record, take, told
from worker.record.claim import WriteAnswer

if TYPE_CHECKING:
    from redis import Redis

    from worker.record.task_record import TaskRecord


def test_a_waiting_task_ends_at_once(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any]
) -> None:
    """Cancelling a task without an owner ends it at once, with one terminal event."""
    handle = client.submit(request_data)
    assert handle.cancel() is TaskStatus.QUEUED
    assert handle.cancel() is TaskStatus.CANCELLED
    assert handle.status() is TaskStatus.CANCELLED
    last = told(redis, client.keys, handle.task_id)[-1]
    assert (last["type"], last["step"], last["metadata"]) == ("cancelled", 0, {"k": "v"})
    assert kinds(redis, client.keys, handle.task_id) == ["queued", "cancelled"]
    assert opened(redis, client.keys) == {handle.task_id}  # until Celery's result says so, too
    with pytest.raises(GenerationCancelled):
        handle.result(timeout=5)


def test_a_running_task_notices_at_its_next_write(
    client: GenerationClient, redis: Redis, records: TaskRecord, request_data: dict[str, Any]
) -> None:
    """The owner of a cancelled task is notified, and owns the task until it ends it."""
    handle = client.submit(request_data)
    claim = take(records, handle.task_id)
    assert append(records, claim, "progress", PROGRESS) is WriteAnswer.WRITTEN
    with redis.pubsub() as notices:
        notices.subscribe(client.keys.control)
        assert notices.get_message(timeout=5) is not None
        assert handle.cancel() is TaskStatus.RUNNING
        notice = notices.get_message(timeout=5)
    assert notice is not None
    assert notice["data"] == handle.task_id.encode()
    assert append(records, claim, "progress", PROGRESS) is WriteAnswer.CANCEL_REQUESTED
    assert handle.status() is TaskStatus.RUNNING
    assert redis.ttl(client.keys.task(handle.task_id)) == -1
    assert records.finish(claim, TaskStatus.CANCELLED, {"step": 2}, {"step": 2})
    assert handle.status() is TaskStatus.CANCELLED


def test_a_cancel_for_an_unknown_task_is_kept(
    client: GenerationClient, redis: Redis, records: TaskRecord, request_data: dict[str, Any]
) -> None:
    """A cancel that arrives before its task's message takes effect when the message is claimed."""
    assert client.handle("early").cancel() is None
    assert take(records, "early").answer == "cancelled"
    assert kinds(redis, client.keys, "early") == []
    assert client.handle("early2").cancel() is None
    client.submit(request_data, "early2")
    assert redis.ttl(client.keys.task("early2")) == -1
    assert take(records, "early2").answer == "cancelled"


def test_a_cancel_without_a_task_is_removed_in_time(client: GenerationClient, redis: Redis) -> None:
    """A cancel for an id that never appears is listed for removal, and makes no task."""
    client.handle("never").cancel()
    assert redis.zrange(client.keys.pending_cancels, 0, -1) == [b"never"]
    assert client.status_many(["never"]) == {"never": None}
    assert opened(redis, client.keys) == set()


@pytest.mark.parametrize("end", [status for status in TaskStatus if status.is_terminal])
def test_an_ended_task_stays_as_it_is(
    client: GenerationClient,
    redis: Redis,
    records: TaskRecord,
    request_data: dict[str, Any],
    end: TaskStatus,
) -> None:
    """Cancelling after the end changes nothing and returns the final status."""
    handle = client.submit(request_data)
    assert records.finish(take(records, handle.task_id), end, {"step": 1}, {"step": 1})
    before = record(redis, client.keys, handle.task_id), told(redis, client.keys, handle.task_id)
    assert handle.cancel() is end
    after = record(redis, client.keys, handle.task_id), told(redis, client.keys, handle.task_id)
    assert after == before


@pytest.mark.parametrize("kept", ["[1, 2", "null", '{"prompt":5}', '{"of_version":2}', "\u00e4"])
@pytest.mark.parametrize("ended", [False, True])
def test_a_task_whose_request_was_refused_can_be_cancelled(
    client: GenerationClient, records: TaskRecord, kept: str, ended: bool
) -> None:
    """A task whose record has an invalid request can be cancelled."""
    claim = take(records, "raw", request=kept)
    if ended:
        assert records.finish(claim, TaskStatus.FAILED, ERROR, {"error": ERROR})
    expected = TaskStatus.FAILED if ended else TaskStatus.RUNNING
    assert client.handle("raw").cancel() is expected


def test_a_requeued_task_can_be_cancelled(
    client: GenerationClient, redis: Redis, records: TaskRecord, request_data: dict[str, Any]
) -> None:
    """A requeued task ends at once when cancelled, as one that never started."""
    task = client.submit(request_data)
    answer = records.requeue(take(records, task.task_id), {"reason": "drained"}, counts=False)
    assert answer is WriteAnswer.WRITTEN
    assert task.cancel() is TaskStatus.QUEUED
    assert task.status() is TaskStatus.CANCELLED
    assert kinds(redis, client.keys, task.task_id)[-1] == "cancelled"
    kept = record(redis, client.keys, task.task_id)
    assert json.loads(kept["outcome"]) == {"step": 0}
