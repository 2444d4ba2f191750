"""What a producer can write into lists and records stops the reconciler for no other task."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import names
from api_contracts.names import MAX_MESSAGE_BYTES
from tests.record.box import lapse_all, post, taken
from tests.record.owners import ask, lapse, take, until
from tests.record.reconcilers import Sent, age, elected
from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.client.sender import Waiting
    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord

pytestmark = pytest.mark.usefixtures("no_held_messages")


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds also of a Redis that has just started."""
    monkeypatch.setattr("worker.recovery.reconciler.UNAVAILABLE_GRACE_S", 0.0)


@pytest.fixture
def victim(client: GenerationClient, redis: Redis, keys: Keys) -> str:
    """A queued task of another caller that has lost its message."""
    task_id = client.submit({"prompt": "x", "model": keys.namespace}, "victim").task_id
    redis.delete(*names.queue_lists(keys.namespace))
    age(redis, keys, task_id)
    return task_id


def pending_cancels_are_a_set(redis: Redis, keys: Keys, _: TaskRecord) -> None:
    redis.sadd(keys.pending_cancels, "x")


def its_queue_is_a_set(redis: Redis, keys: Keys, _: TaskRecord) -> None:
    redis.sadd(names.queue_lists(keys.namespace)[9], "x")


def another_queue_is_a_set(redis: Redis, keys: Keys, records: TaskRecord) -> None:
    take(records, "another", queue="generate.zzz")
    lapse(redis, keys, "another")
    age(redis, keys, "another")
    redis.sadd("generate.zzz", "x")


def a_message_is_too_large(redis: Redis, keys: Keys, _: TaskRecord) -> None:
    large = json.dumps({"headers": {"id": "victim"}, "body": "x" * MAX_MESSAGE_BYTES})
    redis.lpush(names.queue_lists(keys.namespace)[0], large)


def a_request_is_too_deep(redis: Redis, keys: Keys, records: TaskRecord) -> None:
    for depth in range(900, 1000, 4):
        task_id = f"deep-{depth}"
        take(records, task_id, request="[" * depth + "]" * depth, queue="generate.zzz")
        lapse(redis, keys, task_id)
        age(redis, keys, task_id)


POISONS = [
    pending_cancels_are_a_set, its_queue_is_a_set, another_queue_is_a_set, a_message_is_too_large,
    a_request_is_too_deep,
]  # fmt: skip


@pytest.mark.parametrize("poison", POISONS)
def test_a_lost_task_is_sent_again_anyway(
    poison: Callable[..., None], victim: str, redis: Redis, keys: Keys, records: TaskRecord
) -> None:
    """A lost task is sent again, whatever else is malformed."""
    poison(redis, keys, records)
    sent = Sent()
    try:
        made = elected(redis, keys, sent)
        for _ in range(2):  # queues become known in the first
            made.walk()
    finally:
        redis.delete("generate.zzz", *names.queue_lists(keys.namespace))
    assert victim in sent.ids


def test_one_that_cannot_be_sent_stops_no_other(
    victim: str, redis: Redis, keys: Keys, client: GenerationClient
) -> None:
    """A task that cannot be sent keeps no other lost task from being sent again."""
    client.submit({"prompt": "x", "model": keys.namespace}, "broken")
    redis.delete(*names.queue_lists(keys.namespace))
    age(redis, keys, "broken")
    sent = Sent()

    def send(message: Waiting) -> None:
        if message.task_id == "broken":
            raise ArithmeticError
        sent(message)

    elected(redis, keys, send).walk()
    assert sent.ids == [victim]


ODD_WAITING: dict[str, Callable[[Redis, Keys], Any]] = {
    "a deadline": lambda redis, keys: redis.hset(keys.task("odd"), "deadline_at", "soon"),
    "a deadline for Python": lambda redis, keys: redis.hset(keys.task("odd"), "deadline_at", "1_0"),
    "no number": lambda redis, keys: redis.hset(keys.task("odd"), "deadline_at", "nan"),
    "a list of events": lambda redis, keys: (
        redis.hset(keys.task("odd"), "deadline_at", "1.0"),
        redis.lpush(keys.events("odd"), "x"),
    ),
    "a string": lambda redis, keys: (
        redis.delete(keys.task("odd")),
        redis.set(keys.task("odd"), 1),
    ),
    "bytes": lambda redis, keys: redis.zadd(keys.open, {b"\xff": 1.0}),
}


@pytest.mark.parametrize("odd", ODD_WAITING)
def test_an_unreadable_deadline_stops_no_other(
    redis: Redis, keys: Keys, client: GenerationClient, odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A malformed waiting task does not keep another task's deadline from ending it."""
    monkeypatch.setattr("worker.recovery.reconciler.UNAVAILABLE_GRACE_S", 0.0)
    redis.hset(keys.task("odd"), mapping={"status": "queued"})
    ODD_WAITING[odd](redis, keys)
    redis.zadd(keys.open, {"odd": 1.0})
    client.submit({"prompt": "x", "model": keys.namespace, "deadline_s": 0.001}, "late")
    made = elected(redis, keys)

    def is_expired() -> bool:
        made.run_once()
        return redis.hget(keys.task("late"), "status") == b"expired"

    until(is_expired)
    redis.delete(*names.queue_lists(keys.namespace))


@pytest.mark.usefixtures("no_grace")
def test_open_tasks_of_another_type_are_deleted(
    redis: Redis, keys: Keys, records: TaskRecord, client: GenerationClient
) -> None:
    """Open tasks of another type are deleted; until then no claim is granted or written."""
    redis.sadd(keys.open, "x")
    with pytest.raises(Exception, match="WRONGTYPE"):
        ask(records, "new")
    assert not redis.exists(keys.task("new"))
    elected(redis, keys, Sent()).run_once()
    take(records, "new")
    assert redis.zscore(keys.open, "new") is not None


def test_a_message_that_can_not_be_requeued_stays_held(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message whose list is of another type stays held, and others are requeued."""
    monkeypatch.setattr("worker.recovery.reconciler.UNAVAILABLE_GRACE_S", 0.0)
    post(redis, keys.namespace, "bad", priority=9)
    bad = taken(redis, "dead", keys.namespace)
    post(redis, keys.namespace, "good")
    taken(redis, "dead", keys.namespace)
    lists = names.queue_lists(keys.namespace)
    redis.sadd(lists[9], "x")
    lapse_all(redis, "dead")
    made = elected(redis, keys, Sent())
    made.run_once()
    assert redis.llen(lists[5]) == 1
    assert redis.hexists(UNACKED, bad)
    redis.delete(lists[9])
    made.run_once()
    assert (redis.llen(lists[9]), redis.hexists(UNACKED, bad)) == (1, False)
    redis.delete(*lists)


def test_the_pushes_of_a_queued_task_are_not_read(
    victim: str, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reconciler reads no pushes of queued tasks, of which there may be thousands."""
    made = elected(redis, keys, sent := Sent())
    asked: list[str] = []
    monkeypatch.setattr(made._tasks._pushes, "add", asked.append)
    made.walk()
    assert (sent.ids, asked) == ([victim], [])


def test_a_request_that_no_message_can_carry_is_not_read(
    redis: Redis, keys: Keys, records: TaskRecord
) -> None:
    """Producers may write any request into a record: one that is too large is sent as none."""
    take(records, "big", queue=names.queue_name(keys.namespace))
    redis.hset(keys.task("big"), "request", json.dumps("x" * MAX_MESSAGE_BYTES))
    lapse(redis, keys, "big")
    age(redis, keys, "big")
    sent = Sent()
    elected(redis, keys, sent).walk()
    assert dict(zip(sent.ids, sent.letters, strict=True))["big"][1] is None
