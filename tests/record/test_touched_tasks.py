"""Tasks written to lately: their deadlines, ends and pushes, a bounded number in a round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts import names
from tests.record.reconcilers import Sent, elected

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.names import Keys

pytestmark = pytest.mark.usefixtures("small_rounds")


def submitted(client: GenerationClient, task_id: str, **wanted: Any) -> None:
    client.submit({"prompt": "x", "model": client.keys.namespace, **wanted}, task_id)


def test_a_score_in_the_future_hides_no_task(
    redis: Redis, keys: Keys, client: GenerationClient
) -> None:
    """Neither a score in the future nor a clock set back hides a task from its deadline."""
    redis.zadd(keys.open, {"bogus": 9e15})
    made = elected(redis, keys, Sent())
    made.run_once()
    submitted(client, "late", deadline_s=0.001)
    made.run_once()
    made.run_once()
    assert redis.hget(keys.task("late"), "status") == b"expired"
    made._touched._now_s += 3600  # as if the clock had been set back by an hour since
    made._touched._since += 3600
    submitted(client, "later", deadline_s=0.001)
    for _ in range(3):
        made.run_once()
    assert redis.hget(keys.task("later"), "status") == b"expired"
    redis.delete(*names.queue_lists(keys.namespace))


def test_an_error_postpones_and_drops_nothing(
    redis: Redis, keys: Keys, client: GenerationClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error postpones what a round could not do to the next round, and drops nothing."""
    made = elected(redis, keys, Sent())
    submitted(client, "late", deadline_s=0.001)
    submitted(client, "pushed", webhook="https://example.com/x")
    client.handle("pushed").cancel()
    add, expire = made._touched._pushes.add, made._touched._expire

    def away(*_: object, **__: object) -> Any:
        raise RedisConnectionError

    for name, target in (("add", made._touched._pushes), ("_expire", made._touched)):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, away)
            fails = pytest.raises(RedisConnectionError)
            with fails:
                made.run_once()
    assert (add, expire) == (made._touched._pushes.add, made._touched._expire)
    made.run_once()
    made.run_once()
    assert redis.hget(keys.task("late"), "status") == b"expired"
    assert redis.zscore(keys.pushes, "webhook:pushed") is not None
    redis.delete(*names.queue_lists(keys.namespace))


def test_a_quiet_queue_adds_no_deadlines(
    redis: Redis, keys: Keys, client: GenerationClient
) -> None:
    """The newest task is read in every round, and noted once."""
    submitted(client, "t", deadline_s=1000.0)
    made = elected(redis, keys, Sent())
    for _ in range(5):
        made.run_once()
    assert len(made._touched._deadlines) == 1
    redis.delete(*names.queue_lists(keys.namespace))


def test_many_deadlines_at_once_are_ended_over_rounds(
    redis: Redis, keys: Keys, client: GenerationClient
) -> None:
    """A round ends a bounded number, so that the reconciler stays elected."""
    for number in range(120):
        submitted(client, f"t{number}", deadline_s=0.001)
    made, ended = elected(redis, keys, Sent()), []
    for _ in range(10):
        made.run_once()
        statuses = [redis.hget(keys.task(f"t{each}"), "status") for each in range(120)]
        ended.append(statuses.count(b"expired"))
    assert ended[0] <= 60
    assert ended[-1] == 120
    redis.delete(*names.queue_lists(keys.namespace))


def test_the_first_event_of_a_waiting_task_takes_little(
    redis: Redis, keys: Keys, client: GenerationClient
) -> None:
    """The reconciler's copy of a waiting task's stream takes little memory and is the same."""
    submitted(client, "t")
    stream = keys.events("t")
    before = redis.memory_usage(stream), redis.xrange(stream)
    assert int(before[0] or 0) > 4000
    elected(redis, keys, Sent()).run_once()
    assert int(redis.memory_usage(stream) or 0) < 1200
    assert redis.xrange(stream) == before[1]
    client.handle("t").cancel()
    assert [event.type for event in client.handle("t").events(timeout=5)] == ["queued", "cancelled"]
    redis.delete(*names.queue_lists(keys.namespace))
