"""Busy workers leave messages to idle ones, and dead ones delay them little."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient, names
from tests.record.box import post
from tests.record.waking import ask, lists_of, woken
from worker.broker.intake import TAKE, WOKEN_S, Intake, WaitingList
from worker.broker.queue_watch import QueueWatch, WaitState

if TYPE_CHECKING:
    from redis import Redis


def test_a_busy_worker_leaves_messages_to_idle_ones(
    redis: Redis, namespace: str, queue: str
) -> None:
    """A busy worker wakes idle ones for messages, and takes what is more than they will take."""
    redis.zadd(names.ready_key(queue), {"idle": 0, "busier": 5})
    post(redis, namespace, "t1")
    assert ask(redis, namespace, "busy", 2) == -2  # left; itself and the busier one are ready
    assert woken(redis, "idle", "busier") == ["idle"]
    post(redis, namespace, "t2")
    index, entry, others = ask(redis, namespace, "busy", 2)
    assert (index, json.loads(entry)["headers"]["id"], others) == (5, "t1", 2)
    assert ask(redis, namespace, "idle", 0)[2] == 1  # the busier one
    redis.delete(f"{names.WAKE_PREFIX}idle")


def test_an_idle_worker_leaves_nothing(redis: Redis, namespace: str, queue: str) -> None:
    """Among idle workers the first to ask takes the message."""
    redis.zadd(names.ready_key(queue), {"other": 0})
    post(redis, namespace, "t")
    assert ask(redis, namespace, "first", 0)[0] == 5
    assert woken(redis, "other") == []


def test_a_woken_worker_that_died_is_waited_for_once(
    redis: Redis, namespace: str, queue: str
) -> None:
    """A woken worker counts as dead after a tenth of a second; a busy one takes its message."""
    redis.zadd(names.ready_key(queue), {"dead": 0})
    post(redis, namespace, "t")
    assert isinstance(ask(redis, namespace, "busy", 2), int)
    seconds, _ = redis.time()
    redis.zadd(names.ready_key(queue), {"dead": seconds - 1})
    assert ask(redis, namespace, "busy", 2)[0] == 5
    assert redis.zscore(names.ready_key(queue), "dead") is None
    redis.delete(f"{names.WAKE_PREFIX}dead")


@pytest.mark.parametrize("dead", [1, 60])
def test_dead_workers_delay_a_busy_one_by_a_tenth_of_a_second(
    redis: Redis, namespace: str, queue: str, monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    """Dead workers, however many, delay a busy one once, by a tenth of a second."""
    clock_s = [1000.0]
    monkeypatch.setattr("worker.broker.intake.time.monotonic", lambda: clock_s[0])
    redis.zadd(names.ready_key(queue), {f"dead{each}": 0 for each in range(dead)})
    redis.zadd(names.ready_key(queue), {"hostile": 1e15})
    busy = Simulated(redis, namespace, lists_of(namespace))
    busy.tasks = 3
    post(redis, namespace, "t")
    busy.step()
    assert busy.tasks == 3
    clock_s[0] += WOKEN_S
    busy.step()
    assert busy.tasks == 4
    for each in redis.keys(f"{names.WAKE_PREFIX}dead*"):
        redis.delete(each)


class Simulated:
    """A worker that takes messages by `Intake`, over a real Redis and a clock of the test's."""

    def __init__(self, redis: Redis, owner: str, lists: list[WaitingList]) -> None:
        self.redis, self.owner, self.lists, self.tasks = redis, owner, lists, 0
        self.intake = Intake(owner, 30, WaitState())

    def step(self) -> None:
        """Make the next call, if it may be made and, where it waits, is answered."""
        if self.intake.pause_s > 0 or self.tasks == 16:
            return
        name, *arguments = self.intake.next_call(self.lists, self.tasks)
        if name == "BLPOP":
            answer = self.redis.lpop(arguments[0])
            if answer is None:
                return
        else:
            answer = self.redis.eval(TAKE.source, *arguments[1:])
        if self.intake.answered(answer) is not None:
            self.tasks += 1


@pytest.mark.parametrize("sends", ["a client", "plain Celery"])
def test_nine_messages_are_spread_over_three_workers(
    redis: Redis, redis_url: str, namespace: str, queue: str, monkeypatch: pytest.MonkeyPatch,
    sends: str,
) -> None:  # fmt: skip
    """Nine messages are spread evenly over three workers, however fast one of them is."""
    clock_s = [1000.0]
    monkeypatch.setattr("worker.broker.intake.time.monotonic", lambda: clock_s[0])
    workers = [Simulated(redis, f"{namespace}-{each}", lists_of(namespace)) for each in "abc"]
    fast, *slow = workers
    for each in workers:
        each.step()
    if sends == "a client":
        with GenerationClient(redis_url, namespace) as client:
            client.submit_many([{"prompt": "x", "model": namespace}] * 9)
    else:
        post(redis, namespace, *(f"t{number}" for number in range(9)))
        QueueWatch(redis, WaitState(), fast.owner).look(lists_of(namespace))
    for number in range(200):
        clock_s[0] += 0.0005
        fast.step()
        if number % 4 == 0:
            for each in slow:
                each.step()
    assert [each.tasks for each in workers] == [3, 3, 3]
    redis.delete(*(f"{names.WAKE_PREFIX}{each.owner}" for each in workers))


def test_one_worker_alone_does_not_pause(
    redis: Redis, namespace: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker alone fills its slots at once, without a pause."""
    monkeypatch.setattr("worker.broker.intake.time.monotonic", lambda: 1000.0)
    alone = Simulated(redis, namespace, lists_of(namespace))
    post(redis, namespace, *(f"t{number}" for number in range(20)))
    for _ in range(20):
        alone.step()
    assert alone.tasks == 16
