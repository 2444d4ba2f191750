"""Waiting for a message: who is woken, by whom, and what happens when that is lost."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts import GenerationClient, names
from api_contracts.redis_io.connection import connect
from tests.record.box import Box, ids_waiting, post
from tests.record.owners import until
from tests.record.waking import ask, wait, woken
from worker import embedded
from worker.broker.held_messages import HeldMessages
from worker.broker.intake import BLOCK_S

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis


def test_a_submission_wakes_a_worker_that_waits(
    redis: Redis, redis_url: str, namespace: str, queue: str, box: Box
) -> None:
    """A submission wakes a waiting worker, which takes the message and then is not ready."""
    wait(box)
    assert redis.zscore(names.ready_key(queue), namespace) == 0
    with GenerationClient(redis_url, namespace) as client:
        client.submit({"prompt": "x", "model": namespace}, "t")
        (message,) = box.drain()
    assert message.headers["id"] == "t"
    assert redis.zscore(names.ready_key(queue), namespace) is None
    assert woken(redis, namespace) == []


def test_a_submission_needs_no_worker(
    redis: Redis, redis_url: str, namespace: str, queue: str
) -> None:
    """A submission succeeds without a waiting worker, and where their set is of another type."""
    with GenerationClient(redis_url, namespace) as client:
        client.submit({"prompt": "x", "model": namespace}, "t1")
        redis.sadd(names.ready_key(queue), "x")
        client.submit({"prompt": "x", "model": namespace}, "t2")
    assert ids_waiting(redis, namespace) == ["t1", "t2"]
    assert ask(redis, namespace, "owner", 0)[0] == 5  # the other type is deleted
    assert redis.type(names.ready_key(queue)) == b"none"


def test_scripts_are_loaded_again(redis: Redis, redis_url: str, namespace: str, queue: str) -> None:
    """A submission is complete also in a restarted Redis, which knows no script."""
    redis.zadd(names.ready_key(queue), {"a": 0})
    redis.script_flush()
    with GenerationClient(redis_url, namespace) as client:
        client.submit({"prompt": "x", "model": namespace}, "t")
    assert (ids_waiting(redis, namespace), woken(redis, "a")) == (["t"], ["a"])
    redis.delete(f"{names.WAKE_PREFIX}a")


@pytest.mark.parametrize(
    ("priority", "expected"), [(3, ["b", "c"]), (9, ["b", "c"]), (2, ["b", "c", "a"])]
)
def test_those_with_the_fewest_tasks_are_woken(
    redis: Redis, redis_url: str, namespace: str, queue: str, priority: int, expected: list[str]
) -> None:
    """Each message wakes the ready worker with the fewest tasks that has a slot for it."""
    ready = {"a": names.URGENT_ONLY + 1, "b": 0, "c": 3}
    redis.zadd(names.ready_key(queue), ready)
    with GenerationClient(redis_url, namespace) as client:
        for number in range(1, 4):
            client.submit({"prompt": "x", "model": namespace, "priority": priority})
            assert set(woken(redis, *"abc")) == set(expected[:number])
    redis.delete(*(f"{names.WAKE_PREFIX}{each}" for each in "abc"))


@pytest.mark.parametrize("odd", ["another type", "a replica"])
def test_an_error_of_the_wait_ends_no_worker(tmp_path: Path, namespace: str, odd: str) -> None:
    """A worker takes messages again after its wake key was of another type, or Redis a replica."""
    with embedded.redis_server(tmp_path) as url, connect(url) as redis:
        box = Box(url, namespace)
        wait(box)
        if odd == "a replica":
            redis.replicaof("127.0.0.1", "1")
            with suppress(TimeoutError, RedisConnectionError):  # Celery reconnects
                box.connection.drain_events(timeout=0.3)
            redis.replicaof("NO", "ONE")
        else:
            box.channel.client.connection.disconnect()  # the wait is over
            redis.hset(f"{names.WAKE_PREFIX}{namespace}", "x", "1")
            wait(box)
        post(redis, namespace, "t")

        def is_taken() -> bool:
            redis.lpush(f"{names.WAKE_PREFIX}{namespace}", 1)
            return taken_by(box) == ["t"]

        until(is_taken)
        box.close()


def taken_by(box: Box) -> list[str]:
    """Ids of what a consumer gets within a moment."""
    try:
        return [message.headers["id"] for message in box.drain(0.3)]
    except (TimeoutError, RedisConnectionError):
        return []


def test_a_worker_that_waits_stops_at_once(redis_url: str, namespace: str) -> None:
    """A worker that waits stops at once, not when Redis ends its wait."""
    box = Box(redis_url, namespace)
    wait(box)
    began_s = time.monotonic()
    box.close()
    assert time.monotonic() - began_s < BLOCK_S / 2


def test_a_requeued_message_wakes_a_worker(redis: Redis, namespace: str, queue: str) -> None:
    """A dead worker's message that is requeued wakes one that waits, before any look."""
    post(redis, namespace, "t")
    ask(redis, namespace, "dead", 0)
    redis.zadd(names.ready_key(queue), {"idle": 0})
    (tag,) = HeldMessages(redis).held_by("dead")
    assert HeldMessages(redis).requeue(tag)
    assert woken(redis, "idle") == ["idle"]
    redis.delete(f"{names.WAKE_PREFIX}idle")


def test_a_worker_that_leaves_is_woken_no_more(redis: Redis, namespace: str, queue: str) -> None:
    """A worker that leaves is woken no more, and nothing of it stays in Redis."""
    ask(redis, namespace, "leaving", 0)
    redis.lpush(f"{names.WAKE_PREFIX}leaving", 1)
    HeldMessages(redis).retire("leaving", [queue])
    assert redis.zscore(names.ready_key(queue), "leaving") is None
    assert woken(redis, "leaving") == []
