"""The reconciler's walk: which open tasks have lost their message."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationClient, TaskStatus, names
from tests.record.box import post, taken
from tests.record.owners import ask, kinds, lapse, opened, record, take, told
from tests.record.reconcilers import Sent, age, elected, lose
from worker.broker.held_messages import HeldMessages
from worker.metrics import REJECTED
from worker.record.claim import Ended
from worker.recovery.open_tasks import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord

pytestmark = pytest.mark.usefixtures("no_held_messages")


def test_a_waiting_task_without_a_message_is_sent_again(
    redis: Redis, keys: Keys, task_id: str, sent: Sent
) -> None:
    """A waiting task without a message is sent again once, with its request, to its own queue."""
    lose(redis, keys.namespace)
    made = elected(redis, keys, sent)
    made.walk()
    assert sent.letters == []  # it was touched a moment ago
    age(redis, keys, task_id)
    made.walk()
    request = json.loads(record(redis, keys, task_id)["request"])
    assert sent.letters == [(task_id, request, f"generate.{keys.namespace}")]
    made.walk()
    assert len(sent.letters) == 1
    age(redis, keys, task_id)
    made.walk()
    assert len(sent.letters) == 2
    assert kinds(redis, keys, task_id) == ["queued"]


@pytest.mark.parametrize("lost", [True, False])
def test_a_running_task_is_sent_again_when_its_owner_is_dead(
    records: TaskRecord, redis: Redis, task_id: str, sent: Sent, lost: bool
) -> None:
    """A running task without a message is sent again only after its lease has run out."""
    take(records, task_id)
    lose(redis, records.keys.namespace)
    age(redis, records.keys, task_id)
    if lost:
        lapse(redis, records.keys, task_id)
    elected(redis, records.keys, sent).walk()
    assert sent.ids == ([task_id] if lost else [])


@pytest.mark.parametrize("place", ["its list", "another priority", "held", "held by the dead"])
def test_a_task_that_has_a_message_is_not_sent_again(
    records: TaskRecord, redis: Redis, task_id: str, sent: Sent, place: str
) -> None:
    """A task that has a message is not sent again, wherever the message is."""
    model = records.keys.namespace
    if place == "another priority":
        lose(redis, model)
        post(redis, model, task_id, priority=0)
    elif place != "its list":
        taken(redis, "first", model)
    if place == "held by the dead":
        take(records, task_id)
        lapse(redis, records.keys, task_id)
    age(redis, records.keys, task_id)
    elected(redis, records.keys, sent).walk()
    assert sent.letters == []


def test_a_task_without_a_celery_result_is_sent_again(
    client: GenerationClient, records: TaskRecord, redis: Redis, task_id: str, sent: Sent
) -> None:
    """An ended task without a Celery result is sent again until that is written, then no more."""
    assert client.handle(task_id).cancel() is TaskStatus.QUEUED
    lose(redis, records.keys.namespace)
    made = elected(redis, records.keys, sent)
    made.walk()
    assert sent.ids == []  # its message may be on the way
    assert opened(redis, records.keys) == {task_id}
    age(redis, records.keys, task_id)
    made.walk()
    assert sent.ids == [task_id]
    assert ask(records, task_id) == Ended("cancelled", {"step": 0})
    records.close(task_id)
    made.walk()
    assert (sent.ids, opened(redis, records.keys)) == ([task_id], set())
    assert kinds(redis, records.keys, task_id) == ["queued", "cancelled"]


ODD: dict[str, Callable[[Redis, Keys], Any]] = {
    "bytes": lambda redis, keys: redis.zadd(keys.open, {b"\xff": 1.0}),
    "an id": lambda redis, keys: redis.zadd(keys.open, {"a/b": 1.0}),
    "a string": lambda redis, keys: redis.set(keys.task("odd"), "x"),
    "a lease": lambda redis, keys: redis.hset(keys.task("odd"), "lease_until", "?"),
    "a lease for Python": lambda redis, keys: redis.hset(
        keys.task("odd"), mapping={"status": "running", "lease_until": "1_0"}
    ),
    "a queue": lambda redis, keys: redis.hset(keys.task("odd"), "queue", "sag.unacked"),
    "a queue's bytes": lambda redis, keys: redis.hset(keys.task("odd"), "queue", b"\xff"),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_unreadable_record_stops_no_other(
    redis: Redis, keys: Keys, task_id: str, sent: Sent, odd: str
) -> None:
    """An unreadable record is counted and removed from the open tasks; others are sent again."""
    if odd != "a string":
        redis.hset(keys.task("odd"), "status", "queued")
    ODD[odd](redis, keys)
    if odd not in ("bytes", "an id"):
        redis.zadd(keys.open, {"odd": 1.0})
    lose(redis, keys.namespace)
    age(redis, keys, task_id)
    unreadable = REJECTED.labels("odd_record")._value
    before = unreadable.get()
    made = elected(redis, keys, sent)
    for _ in range(2):  # queues become known in the first
        made.walk()
    assert sent.ids == [task_id]
    assert opened(redis, keys) == {task_id}
    assert unreadable.get() == before + 1


@pytest.mark.parametrize("place", ["its list", "nowhere"])
def test_an_old_end_is_closed(
    client: GenerationClient,
    records: TaskRecord,
    redis: Redis,
    task_id: str,
    sent: Sent,
    place: str,
) -> None:
    """An end of longer ago than records are kept is closed, unless a message of it waits."""
    keys = records.keys
    client.handle(task_id).cancel()
    if place == "nowhere":
        lose(redis, keys.namespace)
    redis.hset(keys.task(task_id), "ended_at", "1000.5")
    age(redis, keys, task_id)
    elected(redis, keys, sent).walk()
    assert sent.ids == []
    assert opened(redis, keys) == (set() if place == "nowhere" else {task_id})
    assert (int(redis.ttl(keys.task(task_id))) > 0) == (place == "nowhere")


def test_old_cancels_of_unknown_tasks_are_deleted(
    client: GenerationClient, redis: Redis, keys: Keys, sent: Sent
) -> None:
    """Old cancels of unknown tasks are deleted; a task that was submitted meanwhile is kept."""
    order = {"prompt": "x", "model": keys.namespace}
    for name in ("old", "new", "came"):
        client.handle(name).cancel()
    client.submit(order, "came")
    redis.zadd(keys.pending_cancels, {"old": 1.0, "came": 1.0, "a/b": 1.0, "string": 1.0})
    redis.set(keys.task("string"), "x")
    elected(redis, keys, sent).walk()
    assert redis.zrange(keys.pending_cancels, 0, -1) == [b"new"]
    assert not redis.exists(keys.task("old"))
    assert redis.hget(keys.task("new"), "cancel_requested")
    assert redis.hget(keys.task("came"), "cancel_requested")


def test_a_long_queue_is_searched(client: GenerationClient, redis: Redis, sent: Sent) -> None:
    """Of thousands of queued tasks, only those without a message are sent again."""
    keys, number, gone = client.keys, 10 * SLICE, {"t7", "t1000", "t1999"}
    pipeline = redis.pipeline(transaction=False)
    queue = names.queue_name(keys.namespace)
    for each in range(number):
        fields: dict[Any, Any] = {"status": "queued", "request": '{"prompt":"x"}', "queue": queue}
        pipeline.hset(keys.task(f"t{each}"), mapping=fields)
    pipeline.execute()
    age(redis, keys, *(f"t{each}" for each in range(number)))
    post(redis, keys.namespace, *({f"t{each}" for each in range(number)} - gone))
    elected(redis, keys, sent).walk()
    assert sorted(sent.ids) == sorted(gone)
    assert told(redis, keys, "t7") == []
    assert HeldMessages(redis).overdue() == []
