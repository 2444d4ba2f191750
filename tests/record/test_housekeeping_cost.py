"""What the reconciler asks of Redis in one round does not grow with the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import names
from api_contracts.message import task_message
from tests.record.box import post
from tests.record.reconcilers import Sent, age, elected
from worker.broker.held_messages import UNACKED, HeldMessages, MessageIds
from worker.recovery.message_walk import FIRST_COUNT, MAX_COUNT, MessageWalk

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys

pytestmark = pytest.mark.usefixtures("small_rounds")


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
    """A round reads some 500 recent tasks and some 500 of its walk, however many wait."""
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


def test_a_purge_is_repaired_over_many_rounds(redis: Redis, keys: Keys) -> None:
    """A round sends a bounded number again, so that the reconciler stays elected."""
    wait_in_line(redis, keys, 300)
    redis.delete(*names.queue_lists(keys.namespace))
    made, numbers = elected(redis, keys, sent := Sent()), []
    for _ in range(20):
        before = len(sent.ids)
        made.run_once()
        numbers.append(len(sent.ids) - before)
    assert sorted(sent.ids) == sorted(f"t{each}" for each in range(300))
    assert max(numbers) <= 60


def test_tasks_of_one_instant_are_all_read(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks with one score are all read, even if they are more than a slice."""
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
    """Messages of a size."""

    def __init__(self, number: int, cost: int) -> None:
        self.left, self.cost = number, cost
        self.counts: list[int] = []

    def lists(self, _: object) -> list[str]:
        """One list."""
        return ["queue"]

    def ids(self, name: str, _: object, count: int) -> MessageIds:
        """As many as asked for; none is held."""
        if name == UNACKED:
            return MessageIds(b"0", 0, 0, [])
        self.counts.append(count)
        self.left -= count
        return MessageIds(b"1" if self.left > 0 else b"0", count, count * self.cost, [])


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


@pytest.mark.parametrize(
    ("cost", "settled"), [(2**23, 1), (75_000, 20), (15_000, 100), (1_200, MAX_COUNT)]
)
def test_large_messages_are_read_in_small_slices(cost: int, settled: int) -> None:
    """A call costs about `SLICE_COST`, as far as the limit of its size allows."""
    messages: Any = Messages(20_000 // (1 + cost // 2**20), cost)
    tasks: Any = NoTasks()
    for _ in MessageWalk(tasks, messages, {"queue"}, 15.0).steps(lambda *_: None):
        pass
    assert messages.counts[-1] == settled
    assert max(messages.counts) <= max(settled, FIRST_COUNT)


def test_a_message_of_another_program_costs_more(redis: Redis, keys: Keys) -> None:
    """A message of another program, which is parsed, costs more than a client's, which is not."""
    queue, messages = names.queue_name(keys.namespace), HeldMessages(redis)
    redis.lpush(queue, task_message("t", '{"prompt":"x"}', queue, 0))
    cheap = messages.ids(queue, 0, 10)
    redis.delete(queue)
    post(redis, keys.namespace, "t", priority=0)
    dear = messages.ids(queue, 0, 10)
    assert (cheap.ids, dear.ids) == ([b"t"], [b"t"])
    assert dear.cost > 5 * cheap.cost
    redis.delete(queue)
