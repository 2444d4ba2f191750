"""The reconciler's walk: which open tasks have lost their message."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from api_contracts import GenerationClient, TaskStatus, names
from tests.record.box import post, taken, waiting
from tests.record.owners import ask, kinds, lapse, opened, record, take, take_over, told
from tests.record.reconcilers import Sent, age, elected
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages
from worker.metrics import REJECTED
from worker.record.claim import Ended
from worker.recovery.open_tasks import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


@pytest.fixture(autouse=True)
def _empty_book(redis: Redis) -> None:
    """No message is held yet."""
    redis.delete(UNACKED, UNACKED_INDEX)


@pytest.fixture
def sent() -> Sent:
    """What is sent again."""
    return Sent()


def lose(redis: Redis, model: str) -> None:
    """Delete the queue of a model."""
    redis.delete(*names.queue_lists(model))


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


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_what_is_sent_is_what_a_client_sends(
    client: GenerationClient, redis: Redis, keys: Keys, priority: int
) -> None:
    """A message that is sent again equals the client's, also for a model not served here."""
    model = f"{keys.namespace}.rare"
    client.submit({"prompt": "x", "model": model, "priority": priority}, "t")
    (first,) = waiting(redis, model)
    lose(redis, model)
    age(redis, keys, "t")
    made = elected(redis, keys)
    made.walk()
    assert waiting(redis, model) == []  # its queue becomes known
    made.walk()
    assert waiting(redis, model) == [first]
    assert redis.llen(names.queue_lists(model)[priority]) == 1


@pytest.mark.parametrize("request_", ["[1, 2", "null", "5", '{"prompt": 5}', '{"priority": "x"}'])
def test_a_task_with_an_unreadable_request_is_sent_again_too(
    records: TaskRecord, redis: Redis, request_: str
) -> None:
    """A task with an unreadable request is sent again too, so that its next claim fails it."""
    take(records, "odd", request=request_, queue="generate.q")
    lapse(redis, records.keys, "odd")
    age(redis, records.keys, "odd")
    made = elected(redis, records.keys)
    for _ in range(2):  # its queue becomes known in the first
        made.walk()
    (message,) = waiting(redis, "q")
    lose(redis, "q")
    assert message["headers"]["id"] == "odd"
    assert message["properties"]["priority"] == 5


def purge(client: GenerationClient, url: str) -> int:
    """Do what `celery purge` does; returns the number of deleted messages."""
    queue = names.queue_name(client.keys.namespace)
    app = Celery("purger", broker=url, set_as_current=False)
    app.conf.update(
        broker_transport_options=names.TRANSPORT_OPTIONS,
        task_queues=[Queue(queue, Exchange(queue), routing_key=queue)],
    )
    number = int(app.control.purge())
    app.close()
    return number


def test_a_purge_ends_no_task(
    client: GenerationClient, redis: Redis, redis_url: str, sent: Sent
) -> None:
    """A purge ends no task: those submitted and not cancelled are sent again from the records."""
    ids = [f"t{number}" for number in range(5)]
    for task_id in ids:
        client.submit({"prompt": task_id, "model": client.keys.namespace}, task_id)
    client.handle("t4").cancel()
    assert purge(client, redis_url) == 5
    age(redis, client.keys, *ids[:4])
    elected(redis, client.keys, sent).walk()
    assert sorted(sent.ids) == ids[:4]
    assert {str(request["prompt"]) for _, request, _ in sent.letters} == set(ids[:4])


def claim_it(records: TaskRecord, other: TaskRecord) -> Any:
    return take(records, "task")


def requeue_it(records: TaskRecord, other: TaskRecord) -> Any:
    return records.requeue(take(records, "task"), {"reason": "r"}, counts=False)


def end_it(records: TaskRecord, other: TaskRecord) -> Any:
    return records.finish(take(records, "task"), TaskStatus.CANCELLED, {"step": 0}, {"step": 0})


def take_it_over(records: TaskRecord, other: TaskRecord) -> Any:
    take(records, "task")
    return take_over(other, "task")


def delete_it(records: TaskRecord, other: TaskRecord) -> Any:
    return records.redis.delete(records.keys.task("task"))


MEANWHILE = [claim_it, requeue_it, end_it, take_it_over, delete_it]


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_a_task_that_was_written_to_meanwhile_is_not_sent(  # noqa: PLR0913, PLR0917  # fixtures
    records: TaskRecord,
    other: TaskRecord,
    redis: Redis,
    task_id: str,
    sent: Sent,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[TaskRecord, TaskRecord], Any],
) -> None:
    """The condition is checked again in the step that sends it."""
    lose(redis, records.keys.namespace)
    age(redis, records.keys, task_id)
    made = elected(redis, records.keys, sent)
    lists = made._messages.lists
    with monkeypatch.context() as patch:
        patch.setattr(
            made._messages, "lists", lambda queues: [meanwhile(records, other), *lists(queues)][1:]
        )
        made.walk()
    assert sent.letters == []
    made.walk()
    assert sent.letters == []
    assert opened(redis, records.keys) == (set() if meanwhile is delete_it else {"task"})


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
