"""Submitting: what is written to the record and sent to the queue."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import (
    GenerationClient,
    GenerationRequest,
    InvalidRequest,
    ServiceUnavailable,
    TaskStatus,
    WaitTimeout,
    names,
)
from tests.record.owners import kinds, opened, record, take, told
from worker.embedded import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from worker.record.task_record import TaskRecord


def messages(redis: Redis, model: str) -> list[dict[str, Any]]:
    """The waiting messages of a model, by priority."""
    lists: list[Any] = [redis.lrange(name, 0, -1) for name in names.queue_lists(model)]
    return [json.loads(entry) for entries in lists for entry in entries]


def request_in(message: dict[str, Any]) -> Any:
    return json.loads(message["body"])[1]["request"]


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_the_message_is_one_that_any_celery_reads(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any], priority: int
) -> None:
    """A submission is one JSON message of protocol 2 in the list of its priority."""
    request_data["priority"] = priority
    task_id = client.submit(request_data).task_id
    name = names.queue_lists(request_data["model"])[priority]
    (entry,) = redis.lrange(name, 0, -1)
    message = json.loads(entry)
    headers, properties = message["headers"], message["properties"]
    assert (message["content-type"], message["content-encoding"]) == ("application/json", "utf-8")
    assert (headers["task"], headers["id"], headers["lang"]) == ("sag.generate", task_id, "py")
    assert (headers["eta"], headers["expires"], headers["retries"]) == (None, None, 0)
    assert properties["priority"] == priority
    assert properties["correlation_id"] == task_id
    args, kwargs, _ = json.loads(message["body"])
    assert (args, kwargs) == ([], {"request": request_data})
    assert "x" not in headers["kwargsrepr"].replace("<request>", "")


def test_a_submission_writes_record_and_event(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any]
) -> None:
    """A new task has a record with status `queued`, event 1, and is open."""
    handle = client.submit(GenerationRequest.model_validate(request_data), "my-id")
    kept = record(redis, client.keys, "my-id")
    assert json.loads(kept["request"]) == request_data
    assert (kept["status"], kept["attempt"]) == ("queued", "0")
    assert kept["queue"] == f"generate.{request_data['model']}"
    (event,) = told(redis, client.keys, "my-id")
    assert (event["type"], event["seq"], event["attempt"]) == ("queued", 1, 0)
    assert (event["queue"], event["metadata"]) == (kept["queue"], {"k": "v"})
    assert (handle.status(), opened(redis, client.keys)) == (TaskStatus.QUEUED, {"my-id"})
    assert redis.ttl(client.keys.task("my-id")) == -1


def test_the_same_id_is_one_task(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any]
) -> None:
    """Concurrent submissions of one id make one record and one `queued` event."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.submit(request_data, "same"), range(16)))
    assert kinds(redis, client.keys, "same") == ["queued"]
    assert {message["headers"]["id"] for message in messages(redis, request_data["model"])} == {
        "same"
    }


def test_the_same_id_with_another_request_is_the_first_request(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any]
) -> None:
    """The request in the message is the one in the record, which was submitted first."""
    client.submit(request_data, "same")
    client.submit({**request_data, "prompt": "another"}, "same")
    kept = json.loads(record(redis, client.keys, "same")["request"])
    assert kept == request_data
    assert [request_in(message) for message in messages(redis, request_data["model"])] == [
        kept,
        kept,
    ]


@pytest.mark.parametrize("ended", [False, True])
def test_a_task_under_way_or_ended_is_not_sent_again(
    client: GenerationClient,
    redis: Redis,
    records: TaskRecord,
    request_data: dict[str, Any],
    ended: bool,
) -> None:
    """Submitting an id that is running or has ended sends and writes nothing."""
    client.submit(request_data, "same")
    claim = take(records, "same")
    if ended:
        assert records.finish(claim, TaskStatus.CANCELLED, {"step": 1}, {"step": 1})
    for name in names.queue_lists(request_data["model"]):
        redis.delete(name)
    before = record(redis, client.keys, "same"), told(redis, client.keys, "same")
    client.submit(request_data, "same")
    assert (record(redis, client.keys, "same"), told(redis, client.keys, "same")) == before
    assert messages(redis, request_data["model"]) == []


def test_a_status_of_a_later_version_stops_no_submission(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any]
) -> None:
    """A record whose status this version does not know is left alone; the other task is sent."""
    redis.hset(client.keys.task("later"), mapping={"status": "paused", "request": "{}"})
    client.submit_many([request_data, request_data], task_ids=["later", "known"])
    assert client.handle("known").status() is TaskStatus.QUEUED


def test_an_invalid_request_leaves_no_trace(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any]
) -> None:
    """An invalid request raises with every error and writes nothing to Redis."""
    with pytest.raises(InvalidRequest) as caught:
        client.submit({**request_data, "height": 65, "seed": -1, "unknown": 1})
    assert {fault.where for fault in caught.value.faults} == {"height", "seed", "unknown"}
    assert redis.keys(f"*{request_data['model']}*") == []


@pytest.mark.parametrize("task_id", ["", ".", "..", "a/b", "../a", "a\n", "{a}", "a" * 129, "a b"])
def test_a_hostile_id_is_refused_everywhere(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any], task_id: str
) -> None:
    """An id that could name another key or folder is refused before anything is written."""
    calls: list[Callable[[], object]] = [
        lambda: client.submit(request_data, task_id),
        lambda: client.handle(task_id),
        lambda: client.status_many(["good", task_id]),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest):
            call()
    assert redis.keys(f"*{request_data['model']}*") == []


def test_depths_and_states(client: GenerationClient, request_data: dict[str, Any]) -> None:
    """Depths count all priorities; `status_many` also answers for unknown ids."""
    model = request_data["model"]
    assert client.queue_depths([model]) == {model: 0}
    for priority in (0, 0, 5, 9):
        client.submit(
            {**request_data, "priority": priority},
            f"p{priority}-{client.queue_depths([model])[model]}",
        )
    assert client.queue_depths([model, "other"]) == {model: 4, "other": 0}
    client.handle("p9-3").cancel()
    found = client.status_many(["p0-0", "p9-3", "nobody"])
    assert found == {"p0-0": TaskStatus.QUEUED, "p9-3": TaskStatus.CANCELLED, "nobody": None}
    assert client.status_many([]) == {}


def test_the_first_event_has_the_position_in_the_queue(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any]
) -> None:
    """`position` counts the messages that a worker takes before, at the time of submission."""
    client.submit({**request_data, "model": f"{request_data['model']}-other"}, "elsewhere")
    client.submit(request_data, "alone")  # of priority 5, as each but those that say
    priorities = [5, 9, 0, 0, 5]
    ids = [f"many-{number}" for number in range(len(priorities))]
    client.submit_many([{**request_data, "priority": each} for each in priorities], ids)
    client.submit(request_data, "late")
    client.submit(request_data, "late")
    expected = [0, 0, 1, 2, 0, 1, 4, 5]
    found = [told(redis, client.keys, each)[0] for each in ["elsewhere", "alone", *ids, "late"]]
    assert [event["position"] for event in found] == expected


def test_a_list_of_another_type_stops_no_submission(
    client: GenerationClient, redis: Redis, request_data: dict[str, Any]
) -> None:
    """A list of another type leaves the position unknown and stops no submission."""
    client.submit({**request_data, "priority": 9}, "first")  # kombu looks at the lists once
    redis.hset(names.queue_lists(request_data["model"])[3], "a", "b")
    client.submit({**request_data, "priority": 2}, "before")
    client.submit({**request_data, "priority": 5}, "behind")
    assert told(redis, client.keys, "before")[0]["position"] == 0
    assert told(redis, client.keys, "behind")[0]["position"] is None
    assert len(redis.lrange(names.queue_lists(request_data["model"])[5], 0, -1)) == 1


def test_redis_away_is_reported_at_once(request_data: dict[str, Any], no_backoff: None) -> None:
    """Without Redis every call raises `ServiceUnavailable`, a wait `WaitTimeout`; none hangs."""
    with GenerationClient(f"redis://127.0.0.1:{free_port()}/0") as client:
        handle = client.handle("t")
        calls: list[Callable[[], object]] = [
            lambda: client.submit(request_data), handle.status, handle.cancel, client.queue_depths,
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(ServiceUnavailable):
                call()
        with pytest.raises(WaitTimeout):
            next(handle.events(timeout=0.1))
        with pytest.raises(WaitTimeout):
            handle.result(timeout=0.1)


def test_a_broker_away_loses_nothing(
    client: GenerationClient,
    redis_url: str,
    redis: Redis,
    request_data: dict[str, Any],
    no_backoff: None,
) -> None:
    """With only the broker away the record is written; submitting the id again sends it."""
    away = f"redis://127.0.0.1:{free_port()}/0"
    namespace = client.keys.namespace
    with (
        GenerationClient(away, namespace, events_url=redis_url) as cut_off,
        pytest.raises(ServiceUnavailable),
    ):
        cut_off.submit(request_data, "again")
    assert client.handle("again").status() is TaskStatus.QUEUED
    assert told(redis, client.keys, "again")[0]["position"] is None
    assert len(messages(redis, request_data["model"])) == 0
    client.submit(request_data, "again")
    assert len(messages(redis, request_data["model"])) == 1
    assert kinds(redis, client.keys, "again") == ["queued"]
