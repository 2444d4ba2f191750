"""Following a task: every event once and in order, through lost connections."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import (
    GenerationCancelled,
    GenerationClient,
    GenerationError,
    GenerationExpired,
    GenerationFailed,
    GenerationResult,
    TaskNotFound,
    TaskStatus,
    WaitTimeout,
)
from api_contracts.client.follow import Following
from tests.record.owners import ERROR, PROGRESS, RESULT, append, take, until

if TYPE_CHECKING:
    from redis import Redis

    from worker.record.task_record import TaskRecord

ENDS: dict[TaskStatus, dict[str, Any]] = {
    TaskStatus.SUCCEEDED: {"result": RESULT},
    TaskStatus.FAILED: {"error": ERROR},
    TaskStatus.CANCELLED: {"step": 2},
    TaskStatus.EXPIRED: {"step": 2},
}


@pytest.fixture
def ended(client: GenerationClient, records: TaskRecord, request_data: dict[str, Any]) -> str:
    """The id of a task with six events; the last is `succeeded`."""
    task_id = client.submit(request_data).task_id
    claim = take(records, task_id)
    for _ in range(3):
        append(records, claim, "progress", PROGRESS)
    assert records.finish(claim, TaskStatus.SUCCEEDED, RESULT, {"result": RESULT})
    return task_id


def test_events_come_from_the_first_to_the_last(client: GenerationClient, ended: str) -> None:
    """A late follower sees all events in order; the iterator ends with the terminal one."""
    events = list(client.handle(ended).events(timeout=5))
    assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.is_terminal for event in events] == [False] * 5 + [True]
    assert [event.attempt for event in events] == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_events_replay_after_a_number(client: GenerationClient, ended: str, after: int) -> None:
    """`after` skips exactly the events up to that number."""
    seqs = [event.seq for event in client.handle(ended).events(after=after, timeout=5)]
    assert seqs == list(range(after + 1, 7))


def test_after_the_end_nothing_follows(client: GenerationClient, ended: str) -> None:
    """Following after the terminal event ends at once."""
    assert list(client.handle(ended).events(after=6, timeout=0.1)) == []


def test_past_events_need_no_time(client: GenerationClient, ended: str) -> None:
    """With a timeout of zero, what is already there is returned."""
    assert client.handle(ended).result(timeout=0) == GenerationResult.model_validate(RESULT)


def test_an_event_of_a_later_version_is_skipped(
    client: GenerationClient, records: TaskRecord, request_data: dict[str, Any]
) -> None:
    """An event of an unknown type is skipped and changes nothing else."""
    handle = client.submit(request_data)
    claim = take(records, handle.task_id)
    append(records, claim, "dreaming", {"of": "sheep"})
    records.finish(claim, TaskStatus.CANCELLED, {"step": 0}, {"step": 0})
    types = [event.type for event in handle.events(timeout=5)]
    assert types == ["queued", "started", "cancelled"]
    with pytest.raises(GenerationCancelled):
        handle.result(timeout=5)


def test_events_survive_lost_connections(
    client: GenerationClient, redis: Redis, records: TaskRecord, request_data: dict[str, Any]
) -> None:
    """A follower whose connection is killed while it waits misses and repeats no event."""
    handle = client.submit(request_data)
    claim = take(records, handle.task_id)

    def waiting() -> list[str]:
        found = [each for each in redis.client_list() if each["name"] == client.keys.namespace]
        return [each["id"] for each in found if each["cmd"] == "xread"]

    def kill_and_append() -> None:
        for _ in range(4):
            until(waiting)
            for number in waiting():
                redis.client_kill_filter(_id=number)
            append(records, claim, "progress", PROGRESS)
        records.finish(claim, TaskStatus.EXPIRED, {"step": 1}, {"step": 1})

    killer = threading.Thread(target=kill_and_append)
    killer.start()
    seqs = [event.seq for event in handle.events(timeout=10)]
    killer.join()
    assert seqs == [1, 2, 3, 4, 5, 6, 7]


def test_a_wait_without_events_times_out(
    client: GenerationClient, request_data: dict[str, Any]
) -> None:
    """No event within the timeout raises `WaitTimeout`; the task goes on."""
    handle = client.submit(request_data)
    events = handle.events(timeout=0.1)
    assert next(events).type == "queued"
    with pytest.raises(WaitTimeout):
        next(events)
    with pytest.raises(WaitTimeout):
        handle.result(timeout=0.1)
    assert handle.status() is TaskStatus.QUEUED


def test_an_unknown_task_is_not_waited_for(client: GenerationClient) -> None:
    """Without a record every call raises `TaskNotFound`."""
    handle = client.handle("nobody")
    with pytest.raises(TaskNotFound):
        next(handle.events(timeout=0.1))
    with pytest.raises(TaskNotFound):
        handle.result(timeout=0.1)
    with pytest.raises(TaskNotFound):
        handle.status()


@pytest.mark.parametrize(
    ("end", "expected", "text"),
    [
        (TaskStatus.FAILED, GenerationFailed, "internal: m"),
        (TaskStatus.CANCELLED, GenerationCancelled, "cancelled at step 2"),
        (TaskStatus.EXPIRED, GenerationExpired, "deadline_exceeded: the deadline passed at step 2"),
    ],
)
def test_each_end_has_its_exception(
    client: GenerationClient,
    records: TaskRecord,
    request_data: dict[str, Any],
    end: TaskStatus,
    expected: type[GenerationError],
    text: str,
) -> None:
    """`result` raises a different error for each end without pictures."""
    handle = client.submit(request_data)
    records.finish(take(records, handle.task_id), end, ENDS[end], ENDS[end])
    with pytest.raises(GenerationError, match=text) as caught:
        handle.result(timeout=5)
    assert type(caught.value) is expected
    if isinstance(caught.value, GenerationFailed) and end is TaskStatus.FAILED:
        assert caught.value.error.model_dump(mode="json") == ERROR


def test_a_short_timeout_of_the_connection_shortens_the_wait(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is asked to block for less time than the client waits for its answer."""

    def fail(_following: Following, error: Exception) -> float:
        raise error

    monkeypatch.setattr(Following, "pause_s", fail)
    with (
        GenerationClient(f"{redis_url}?socket_timeout=1") as client,
        pytest.raises(TaskNotFound),
    ):
        client.handle("nope").result()


def test_success_gives_the_result(client: GenerationClient, redis: Redis, ended: str) -> None:
    """`result` returns what the worker published, equal to the record's outcome."""
    result = client.handle(ended).result(timeout=5)
    kept: Any = redis.hget(client.keys.task(ended), "outcome")
    assert result.model_dump(mode="json") == RESULT == json.loads(kept)
