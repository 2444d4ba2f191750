"""What a producer may write into lists and records stops the reconciler for nobody else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from kombu.exceptions import EncodeError

from api_contracts import names
from tests.record.box import lapse_all, post, taken
from tests.record.owners import ask, lapse, take
from tests.record.rescue import Sent, age, elected
from worker.broker import held_messages as module
from worker.broker.held_messages import MAX_MESSAGE_BYTES, UNACKED, UNACKED_INDEX, HeldMessages

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


@pytest.fixture(autouse=True)
def _empty_book(redis: Redis) -> None:
    """Nothing is held yet."""
    redis.delete(UNACKED, UNACKED_INDEX)


@pytest.fixture
def victim(client: GenerationClient, redis: Redis, keys: Keys) -> str:
    """A waiting task of an honest caller that has lost its message."""
    task_id = client.submit({"prompt": "x", "model": keys.namespace}, "victim").task_id
    redis.delete(*names.queue_lists(keys.namespace))
    age(redis, keys, task_id)
    return task_id


def wishes_are_none(redis: Redis, keys: Keys, _: TaskRecord) -> None:
    redis.sadd(keys.pending_cancels, "x")


def a_list_of_its_own_is_none(redis: Redis, keys: Keys, _: TaskRecord) -> None:
    redis.sadd(names.queue_lists(keys.namespace)[9], "x")


def anothers_list_is_none(redis: Redis, keys: Keys, claims: TaskRecord) -> None:
    take(claims, "another", queue="generate.zzz")
    lapse(redis, keys, "another")
    age(redis, keys, "another")
    redis.sadd("generate.zzz", "x")


def a_message_is_too_large(redis: Redis, keys: Keys, _: TaskRecord) -> None:
    large = json.dumps({"headers": {"id": "victim"}, "body": "x" * MAX_MESSAGE_BYTES})
    redis.lpush(names.queue_lists(keys.namespace)[0], large)


def a_request_is_too_deep(redis: Redis, keys: Keys, claims: TaskRecord) -> None:
    for depth in range(900, 1000, 4):
        task_id = f"deep-{depth}"
        take(claims, task_id, request="[" * depth + "]" * depth, queue="generate.zzz")
        lapse(redis, keys, task_id)
        age(redis, keys, task_id)


POISONS = [
    wishes_are_none, a_list_of_its_own_is_none, anothers_list_is_none, a_message_is_too_large,
    a_request_is_too_deep,
]  # fmt: skip


@pytest.mark.parametrize("poison", POISONS)
def test_a_lost_task_is_sent_again_all_the_same(
    poison: Callable[..., None], victim: str, redis: Redis, keys: Keys, claims: TaskRecord
) -> None:
    """In the same walk, whatever else is odd."""
    poison(redis, keys, claims)
    sent = Sent()
    try:
        elected(redis, keys, sent).walk()
    finally:
        redis.delete("generate.zzz", *names.queue_lists(keys.namespace))
    assert victim in sent.ids


def test_one_that_cannot_be_sent_stops_no_other(
    victim: str, redis: Redis, keys: Keys, client: GenerationClient
) -> None:
    """Nested too deep for Celery, it goes as a request that is refused; else it waits a lease."""
    for name in ("deep", "broken"):
        client.submit({"prompt": name, "model": keys.namespace}, name)
    redis.delete(*names.queue_lists(keys.namespace))
    age(redis, keys, "deep", "broken")
    sent = Sent()

    def send(task_id: str, request: Any, queue: str) -> None:
        if task_id == "deep" and request is not None:
            raise EncodeError
        if task_id == "broken":
            raise ArithmeticError
        sent(task_id, request, queue)

    elected(redis, keys, send).walk()
    assert sorted(sent.ids) == ["deep", victim]
    assert dict(zip(sent.ids, sent.letters, strict=True))["deep"][1] is None


def test_open_tasks_that_are_none_make_room(
    redis: Redis, keys: Keys, claims: TaskRecord, client: GenerationClient
) -> None:
    """While the key is another type no task is begun, and nothing of it written; then it goes."""
    redis.sadd(keys.open, "x")
    with pytest.raises(Exception, match="WRONGTYPE"):
        ask(claims, "new")
    assert not redis.exists(keys.task("new"))
    elected(redis, keys, Sent()).walk()
    take(claims, "new")
    assert redis.zscore(keys.open, "new") is not None


def test_a_message_that_cannot_go_back_stays_held(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list is none, by somebody's doing: it is not lost, and others go back."""
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


def test_between_two_looks_there_is_time(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no message has an id: who looks says again that it is elected."""
    monkeypatch.setattr(module, "SLICE", 10)
    redis.lpush(names.queue_lists(keys.namespace)[0], *["{}"] * 95)
    looks: list[int] = []
    queue = names.queue_name(keys.namespace)
    assert list(HeldMessages(redis).ids([queue], lambda: looks.append(1))) == []
    assert len(looks) >= 10


def test_a_waiting_task_is_asked_for_no_pushes(
    victim: str, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what has ended: with thousands that wait, each question costs."""
    made = elected(redis, keys, sent := Sent())
    asked: list[str] = []
    monkeypatch.setattr(made._tasks._pushes, "note", asked.append)
    made.walk()
    assert (sent.ids, asked) == ([victim], [])
