"""What the reconciler asks of Redis in one round does not grow with the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import names
from tests.record.box import post
from tests.record.reconcilers import Sent, age, elected
from worker.broker.held_messages import UNACKED, UNACKED_INDEX
from worker.recovery import reconciler
from worker.recovery.message_walk import MAX_COUNT, MIN_COUNT, MessageWalk

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys


@pytest.fixture(autouse=True)
def _empty_book(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """No message is held yet; rounds do as little as they may."""
    redis.delete(UNACKED, UNACKED_INDEX)
    monkeypatch.setattr(reconciler, "UNAVAILABLE_GRACE_S", 0.0)
    monkeypatch.setattr(reconciler, "ROUND_S", 0.0)


def wait_in_line(redis: Redis, keys: Keys, number: int) -> None:
    """Write waiting tasks t0, t1, … with their messages."""
    ids = [f"t{each}" for each in range(number)]
    pipeline, queue = redis.pipeline(transaction=False), names.queue_name(keys.namespace)
    for task_id in ids:
        fields: Any = {"status": "queued", "request": '{"prompt":"x"}', "queue": queue}
        pipeline.hset(keys.task(task_id), mapping=fields)
    pipeline.zadd(keys.open, {task_id: 1000 + each for each, task_id in enumerate(ids)})
    pipeline.execute()
    post(redis, keys.namespace, *ids)


def commands(redis: Redis) -> int:
    """Commands that Redis has run, those in scripts included."""
    found: Any = redis.info("commandstats")
    return sum(int(each["calls"]) for each in found.values())


@pytest.mark.parametrize("number", [3_000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_a_round_reads_a_bounded_number_of_tasks(redis: Redis, keys: Keys, number: int) -> None:
    """Some 500 that were written lately and some 500 of the walk, however many wait."""
    wait_in_line(redis, keys, number)
    made = elected(redis, keys, Sent())
    most = 0
    for _ in range(2 * number // 500 + 20):
        before = commands(redis)
        made.run_once()
        most = max(most, commands(redis) - before)
    # A slice of recently written tasks takes one HMGET each, two slices may be read.
    assert most <= 2 * 500 + 100
    assert made._walk is None
    before = commands(redis)
    made.run_once()
    assert commands(redis) - before < 20  # nothing was written, and no walk is due


def test_a_lost_message_is_found_over_many_rounds(redis: Redis, keys: Keys) -> None:
    """A walk goes on where the last round left it, and finds the task without a message."""
    wait_in_line(redis, keys, 3_000)
    queue = names.queue_list(names.queue_name(keys.namespace), 5)
    (lost,) = redis.lrange(queue, 1500, 1500)
    redis.lrem(queue, 1, lost)  # type: ignore[arg-type]  # bytes
    made, rounds = elected(redis, keys, sent := Sent()), 0
    while not sent.ids and rounds < 50:
        made.run_once()
        rounds += 1
    assert sent.ids == ["t1499"]
    assert rounds > 3


def test_tasks_of_one_instant_are_all_read(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a slice of tasks with one score: the reader comes past them."""
    monkeypatch.setattr("worker.recovery.touched_tasks.SLICE", 10)
    wait_in_line(redis, keys, 60)
    age(redis, keys, *(f"t{each}" for each in range(60)))
    redis.hset(keys.task("last"), mapping={"status": "queued", "deadline_at": "1.0"})
    redis.zadd(keys.open, {"last": 5000})
    made = elected(redis, keys, Sent())
    for _ in range(20):
        made.run_once()
    assert redis.hget(keys.task("last"), "status") == b"expired"


class Messages:
    """Messages of which each takes a millisecond to read."""

    def __init__(self, clock_s: list[float], number: int, ms: float) -> None:
        self.clock_s, self.left, self.ms = clock_s, number, ms
        self.counts: list[int] = []

    def lists(self, _: object) -> list[str]:
        """One list."""
        return ["queue"]

    def ids(self, name: str, _: object, count: int) -> tuple[bytes, int, list[bytes]]:
        """As many as asked for; none is held."""
        if name == UNACKED:
            return b"0", 0, []
        self.counts.append(count)
        self.clock_s[0] += count * self.ms / 1000
        self.left -= count
        return b"1" if self.left > 0 else b"0", count, []


class NoTasks:
    """No open tasks."""

    def forget_pending_cancels(self) -> None:
        """Do nothing."""

    def now_s(self) -> float:
        """Some time."""
        return 0.0

    def slices(self) -> list[Any]:
        """None."""
        return []


@pytest.mark.parametrize(("ms", "settled"), [(1.0, MIN_COUNT), (0.01, 200), (0.0, MAX_COUNT)])
def test_slow_messages_are_read_in_small_slices(
    monkeypatch: pytest.MonkeyPatch, ms: float, settled: int
) -> None:
    """A call takes about two milliseconds, as far as the limits of its size allow."""
    clock_s = [0.0]
    monkeypatch.setattr("worker.recovery.message_walk.time.monotonic", lambda: clock_s[0])
    messages: Any = Messages(clock_s, 20_000, ms)
    tasks: Any = NoTasks()
    for _ in MessageWalk(tasks, messages, {"queue"}, 15.0).steps(lambda *_: None):
        pass
    assert messages.counts[-1] == pytest.approx(settled, rel=0.01)
