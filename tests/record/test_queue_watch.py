"""Waiting workers look at their queues for messages that woke none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from api_contracts import names
from tests.record.box import Box, letter
from tests.record.owners import until
from tests.record.waking import ask, lists_of, woken
from worker.broker import queue_watch
from worker.broker.intake import WaitingList
from worker.broker.queue_watch import QueueWatch, WaitState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis


def test_only_workers_that_look_at_the_same_lists_are_counted(
    redis: Redis, namespace: str, queue: str, box: Box
) -> None:
    """A worker counts the waiting workers that look at all of its lists."""
    redis.zadd(names.ready_key(queue), {f"urgent{each}": 1016 + each for each in range(99)})
    assert ask(redis, namespace, "idle", 0) == 1
    assert ask(redis, namespace, "urgent", 1016, below=2000) == 101
    state = WaitState()
    watch = QueueWatch(redis, state, namespace)
    lists = [WaitingList(names.queue_list(queue, each), queue, each) for each in names.PRIORITIES]
    for _ in range(4):
        watch.look(lists)
    assert state.ready == 1
    for _ in range(4):
        watch.look(lists[:3])
    assert state.ready == 101


@pytest.fixture
def watch(redis: Redis, namespace: str) -> Iterator[QueueWatch]:
    """The watch of a worker, its thread not started."""
    made = QueueWatch(redis, WaitState(), namespace)
    yield made
    made.close()


def test_a_message_that_woke_no_worker_is_found(
    redis: Redis, namespace: str, queue: str, watch: QueueWatch
) -> None:
    """A waiting worker finds a message that woke none, and wakes the one with the fewest tasks."""
    redis.zadd(names.ready_key(queue), {namespace: 2, "idle": 0})
    watch.look(lists_of(namespace))
    assert woken(redis, namespace, "idle") == []
    redis.lpush(queue, json.dumps(letter("plain")))
    watch.look(lists_of(namespace))
    assert woken(redis, namespace, "idle") == ["idle"]
    redis.delete(f"{names.WAKE_PREFIX}idle")


def test_a_worker_that_looks_twice_in_vain_wakes_itself(
    redis: Redis, namespace: str, queue: str, watch: QueueWatch
) -> None:
    """A worker that looks twice in vain wakes itself, as the one it woke may be dead."""
    redis.zadd(names.ready_key(queue), {f"{namespace}-dead{each}": 0 for each in range(9)})
    redis.lpush(queue, json.dumps(letter("plain")))
    watch.look(lists_of(namespace))
    assert woken(redis, namespace) == []
    watch.look(lists_of(namespace))
    assert woken(redis, namespace) == [namespace]
    redis.delete(f"{names.WAKE_PREFIX}{namespace}")


def test_a_worker_that_redis_forgot_wakes_itself(
    redis: Redis, namespace: str, queue: str, watch: QueueWatch
) -> None:
    """A worker that Redis forgot wakes itself, so that messages are taken all the same."""
    redis.lpush(queue, json.dumps(letter("plain")))
    watch.look(lists_of(namespace))
    assert woken(redis, namespace) == [namespace]
    redis.delete(f"{names.WAKE_PREFIX}{namespace}")


@pytest.mark.parametrize(("ready", "period_s"), [(0, 0.015), (1, 0.015), (100, 1.5), (1000, 2.0)])
def test_the_more_wait_the_more_seldom_each_looks(ready: int, period_s: float) -> None:
    """The more workers wait the more seldom each looks, until each looks every two seconds."""
    state = WaitState()
    state.ready = ready
    assert state.period_s == pytest.approx(period_s)


def test_a_worker_that_waits_for_urgent_messages_looks_seldom(queue: str) -> None:
    """A worker that waits for urgent messages only looks less often than one without tasks."""
    state = WaitState()
    lists = [WaitingList(names.queue_list(queue, each), queue, each) for each in names.PRIORITIES]
    state.begin(lists[:3])
    assert state.period_s == pytest.approx(0.1)
    state.begin(lists)
    assert state.period_s == pytest.approx(0.015)


def test_only_a_worker_that_waits_looks(
    redis: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker looks for messages only while it waits; a busy one asks nothing of Redis."""
    monkeypatch.setattr(queue_watch, "STOP_CHECK_S", 0.02)
    state = WaitState()
    watch = QueueWatch(redis, state, namespace)
    looked: list[int] = []
    monkeypatch.setattr(watch, "look", lambda lists: looked.append(len(lists)))
    watch.start()
    state.begin(lists_of(namespace))
    until(lambda: len(looked) >= 2)
    state.end()
    assert set(looked) == {10}
    watch.close()
    watch._thread.join(5)
    assert not watch._thread._thread.is_alive()
