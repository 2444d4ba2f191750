"""Releasing what a dead process held, without touching what others hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY
from redis.exceptions import RedisError

from tests.record.box import ids_waiting, post, taken, waiting
from tests.record.owners import ask, record, take, take_over
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages
from worker.config.settings import Settings
from worker.embedded import free_port
from worker.record.claim import Claim, Held
from worker.recovery.release import release_owner

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


@pytest.fixture
def settings(redis_url: str, redis: Redis, namespace: str) -> Settings:
    """Settings of the workers; no message is held yet."""
    redis.delete(UNACKED, UNACKED_INDEX)
    return Settings(broker_url=redis_url, namespace=namespace)


def test_everything_that_a_dead_process_held_is_available_at_once(
    settings: Settings, records: TaskRecord, other: TaskRecord, redis: Redis
) -> None:
    """A dead process's messages go to the front as redelivered; its tasks can be claimed again."""
    model = settings.namespace
    post(redis, model, "a", "b", "c")
    for task_id in ("a", "b"):
        taken(redis, "first", model)
        take(records, task_id)
    assert isinstance(ask(other, "a"), Held)
    assert release_owner(settings, "first") == 2
    assert sorted(ids_waiting(redis, model)[:2]) == ["a", "b"]
    assert ids_waiting(redis, model)[2:] == ["c"]
    for message in waiting(redis, model)[:2]:
        assert message["properties"]["delivery_info"]["redelivered"] is True
    for task_id in ("a", "b"):
        assert take(other, task_id).attempt == 2
    assert HeldMessages(redis).held_by("first") == []
    assert release_owner(settings, "first") == 0


def test_other_processes_keep_what_they_hold(
    settings: Settings, records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """Other processes keep what they hold, also a task that the dead process had before."""
    model = settings.namespace
    post(redis, model, "mine", "lost", "theirs")
    for task_id in ("mine", "lost"):
        taken(redis, "first", model)
        take(records, task_id)
    taken(redis, "other", model)
    take(other, "theirs")
    take_over(other, "lost")
    leases = [record(redis, keys, task_id)["lease_until"] for task_id in ("lost", "theirs")]
    assert release_owner(settings, "first") == 2
    after = [record(redis, keys, task_id)["lease_until"] for task_id in ("lost", "theirs")]
    assert after == leases
    assert len(HeldMessages(redis).held_by("other")) == 1
    assert [isinstance(ask(other, each), Claim) for each in ("mine", "lost")] == [True, False]


def test_a_message_without_a_claim_is_requeued_too(
    settings: Settings, records: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """A dead process's message without a claim is requeued, also one with an odd id."""
    model = settings.namespace
    post(redis, model, "unclaimed", "../odd")
    for _ in range(2):
        taken(redis, "first", model)
    redis.hset(UNACKED, "first/odd", b"garbage")
    redis.zadd(UNACKED_INDEX, {"first/odd": 5.0})
    assert release_owner(settings, "first") == 2
    assert sorted(ids_waiting(redis, model)) == ["../odd", "unclaimed"]
    assert take(records, "unclaimed").attempt == 1
    assert not redis.exists(UNACKED, UNACKED_INDEX)
    assert record(redis, keys, "../odd") == {}


def test_it_is_counted(settings: Settings, redis: Redis) -> None:
    """The metric counts messages that a death released."""

    def counted() -> float:
        name, labels = "sag_messages_recovered_total", {"reason": "death"}
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = counted()
    post(redis, settings.namespace, "a")
    taken(redis, "first", settings.namespace)
    release_owner(settings, "first")
    assert counted() == before + 1


def test_without_redis_it_raises_soon(settings: Settings) -> None:
    """An outage is an error within seconds: the caller has other processes to look after."""
    away = settings.model_copy(
        update={"broker_url": Settings(broker_url=f"redis://127.0.0.1:{free_port()}").broker_url}
    )
    with pytest.raises(RedisError):
        release_owner(away, "first")
