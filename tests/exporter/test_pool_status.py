"""What the exporter reads: queue, held and running messages, workers, pushes and dead letters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts.names import queue_lists
from tests.exporter.conftest import entry, pool_settings
from tests.record.box import post, taken
from tests.record.owners import now_s
from worker import embedded
from worker.broker.held_messages import UNACKED
from worker.exporter.pool_status import PoolReader, PoolStatus
from worker.recovery.pool_entry import stale_after_s
from worker.recovery.timing import FORGET_WORKER_S

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.names import Keys
    from worker.config.settings import Settings

#: A value that a producer wrote, in bytes.
LARGE_BYTES = 64 * 2**20


def read(settings: Settings) -> PoolStatus:
    """The status now."""
    return PoolReader(settings).read()


def test_an_empty_pool_is_all_zeros(settings: Settings) -> None:
    """Without a queue, a worker or a task every count is 0, and so is the backlog."""
    found = read(settings)
    assert (found.waiting, found.held, found.running, found.backlog) == (0, 0, 0, 0.0)
    assert (found.workers, found.workers_well, found.slots, found.slots_free) == (0, 0, 0, 0)
    assert (found.oldest_wait_s, found.open_tasks, found.oldest_open_s) == (0.0, 0, 0.0)
    assert (found.dead_letters, found.pushes_due, found.pushes_pending) == (0, 0, 0)
    assert found.slots_per_worker == settings.slots


def test_waiting_messages_are_counted_by_model_and_priority(
    settings: Settings, redis: Redis, namespace: str
) -> None:
    """Waiting messages are counted by each model of `SAG_MODELS` and each priority, with zeros."""
    post(redis, namespace, "a", "b", priority=5)
    post(redis, namespace, "c", priority=0)
    post(redis, f"{namespace}-other", "d")
    found = read(settings)
    assert found.waiting_by == {namespace: {p: {5: 2, 0: 1}.get(p, 0) for p in range(10)}}
    assert found.waiting == 3


def test_a_message_is_held_until_its_task_is_claimed(
    settings: Settings, redis: Redis, keys: Keys, namespace: str
) -> None:
    """Held and running together are the messages that workers have: none is counted twice."""
    post(redis, namespace, *"abcd")
    for _ in range(3):
        taken(redis, "host:w:1", namespace)
    redis.zadd(keys.workers, {"host:w:1": now_s(redis)})
    redis.hset(keys.pool, "host:w:1", entry(running=2))
    found = read(settings)
    assert (found.waiting, found.held, found.running) == (1, 1, 2)
    redis.hset(keys.pool, "host:w:1", entry(running=7))  # told before some of them ended
    found = read(settings)
    assert (found.held, found.running) == (0, 3)


def test_the_backlog_counts_all_work_that_is_not_done(
    settings: Settings, redis: Redis, keys: Keys, namespace: str
) -> None:
    """The backlog counts held messages of a busy pool, and waiting tasks without a worker."""
    post(redis, namespace, *map(str, range(8)))
    assert read(settings).backlog == 8 / settings.slots
    redis.zadd(keys.workers, {"host:w:1": now_s(redis)})
    redis.hset(keys.pool, "host:w:1", entry(slots=4, running=4))
    assert read(settings).backlog == 2.0
    for _ in range(8):
        taken(redis, "host:w:1", namespace)
    found = read(settings)
    assert (found.waiting, found.backlog) == (0, 2.0)


def test_the_slots_of_one_worker_are_what_workers_report(
    settings: Settings, redis: Redis, keys: Keys
) -> None:
    """Slots per worker are the mean over well workers; one that tells nothing has `SAG_SLOTS`."""
    now = now_s(redis)
    redis.zadd(keys.workers, {"a:w:1": now, "b:w:2": now, "c:w:3": now})
    redis.hset(keys.pool, mapping={"a:w:1": entry(slots=4, running=3), "b:w:2": entry(slots=8)})
    found = read(settings)
    assert found.slots_per_worker == pytest.approx((4 + 8 + settings.slots) / 3)
    assert (found.slots, found.slots_free) == (12 + settings.slots, 1 + 8 + settings.slots)
    redis.hset(keys.pool, "c:w:3", '{"slots": "many"}')
    assert read(settings).workers_well == 3


def test_a_worker_is_well_that_renews_and_does_not_refuse(
    settings: Settings, redis: Redis, keys: Keys
) -> None:
    """A worker is well if it is listed, renews and does not refuse; others have no free slots.

    The tasks of one that refuses still run; those of a silent one count as held.
    """
    now = now_s(redis)
    silent_s = stale_after_s(settings.lease_s) + 1
    redis.zadd(keys.workers, {"a:w:1": now, "b:w:2": now, "c:w:3": now - silent_s})
    for owner in ("a:w:1", "c:w:3", "gone:w:4"):
        redis.hset(keys.pool, owner, entry(running=1))
    redis.hset(keys.pool, "b:w:2", entry(running=2, refusal="leaving"))
    redis.hset(UNACKED, mapping={f"tag{number}": "x" for number in range(9)})
    found = read(settings)
    assert (found.workers, found.workers_well, found.slots_free) == (3, 1, 15)
    assert (found.running, found.held) == (3, 6)
    assert found.refusals["b:w:2"] == "leaving"
    redis.zadd(keys.workers, {"d:w:5": now - FORGET_WORKER_S - 1, "e:w:6": now - 590})
    assert read(settings).workers == 4  # as `health`, which has forgotten one of them
    assert found.refusals["c:w:3"] == f"has renewed no lease for {silent_s:.0f} s"


def test_the_oldest_wait_is_that_of_the_next_messages(
    settings: Settings, redis: Redis, keys: Keys, client: GenerationClient, namespace: str
) -> None:
    """The oldest wait is of a message that is next in its list, since its task's submission."""
    request = {"prompt": "x", "model": namespace}
    for task_id, priority in (("first", 5), ("second", 5), ("urgent", 0)):
        client.submit(request | {"priority": priority}, task_id)
    redis.hset(keys.task("first"), "submitted_at", now_s(redis) - 100)
    redis.hset(keys.task("second"), "submitted_at", now_s(redis) - 900)  # behind the first
    redis.hset(keys.task("urgent"), "submitted_at", now_s(redis) - 50)
    assert read(settings).oldest_wait_s == pytest.approx(160, abs=60)
    assert read(settings).open_tasks == 3


def test_a_wait_without_a_record_is_unknown(
    settings: Settings, redis: Redis, namespace: str
) -> None:
    """A message of plain Celery, or one that is no message, has no known wait."""
    post(redis, namespace, "plain", priority=1)
    bad_id = json.dumps({"headers": {"id": "../"}}).encode()
    for number, odd in enumerate((b"\xff", b"[]", b"null", bad_id)):
        redis.lpush(queue_lists(namespace)[number + 2], odd)
    found = read(settings)
    assert (found.waiting, found.oldest_wait_s) == (5, None)


@pytest.mark.parametrize("odd", ["abc", "", "nan", "inf", "-inf", "1" * 100])
def test_an_odd_time_of_submission_hides_no_other(
    settings: Settings, redis: Redis, keys: Keys, client: GenerationClient, namespace: str, odd: str
) -> None:
    """A time of submission that another program wrote is ignored, and other heads are read."""
    for task_id, priority in (("odd", 0), ("good", 5)):
        client.submit({"prompt": "x", "model": namespace, "priority": priority}, task_id)
    redis.hset(keys.task("odd"), "submitted_at", odd)
    redis.hset(keys.task("good"), "submitted_at", now_s(redis) - 100)
    assert read(settings).oldest_wait_s == pytest.approx(160, abs=60)
    redis.rpop(queue_lists(namespace)[5])
    assert read(settings).oldest_wait_s is None


def test_a_large_head_is_not_sent_to_the_exporter(
    settings: Settings, redis: Redis, keys: Keys, client: GenerationClient, namespace: str
) -> None:
    """A large message, time of submission or id is not sent to the exporter; others are read."""
    client.submit({"prompt": "x", "model": namespace}, "good")
    client.submit({"prompt": "x", "model": namespace, "priority": 1}, "odd")
    redis.hset(keys.task("good"), "submitted_at", now_s(redis) - 100)
    redis.hset(keys.task("odd"), "submitted_at", "1" * LARGE_BYTES)
    redis.zadd(keys.open, {"x" * LARGE_BYTES: now_s(redis) - 100})
    redis.lpush(queue_lists(namespace)[0], "x" * LARGE_BYTES)
    reader = PoolReader(settings)
    reader.read()  # loads the scripts
    before: Any = redis.info("stats")
    found = reader.read()
    after: Any = redis.info("stats")
    assert (found.waiting, found.open_tasks) == (3, 3)
    assert found.oldest_wait_s == pytest.approx(160, abs=60)
    assert found.oldest_open_s == pytest.approx(160, abs=60)
    sent = after["total_net_output_bytes"] - before["total_net_output_bytes"]
    assert sent < 2**20


@pytest.mark.parametrize("score", ["-inf", "inf"])
def test_an_infinite_time_of_an_open_task_is_left_out(
    settings: Settings, redis: Redis, keys: Keys, score: str
) -> None:
    """An infinite score in `ns:open`, which a producer may add, is not the oldest open task."""
    redis.zadd(keys.open, {"odd": float(score)})
    assert read(settings).oldest_open_s == 0.0
    redis.zadd(keys.open, {"good": now_s(redis) - 30})
    found = read(settings)
    assert found.oldest_open_s == pytest.approx(60, abs=30)
    assert found.open_tasks == 2


def test_pushes_dead_letters_and_open_tasks_are_counted(
    settings: Settings, redis: Redis, keys: Keys
) -> None:
    """A push is due when the time of its next try has come."""
    now = now_s(redis)
    redis.zadd(keys.pushes, {"webhook:a": now - 5, "webhook:b": now + 500, "webhook:c": now + 600})
    redis.xadd(keys.dead, {"task_id": "x"})
    redis.zadd(keys.open, {"a": now - 30, "b": now})
    found = read(settings)
    assert (found.pushes_due, found.pushes_pending, found.dead_letters) == (1, 3, 1)
    assert found.open_tasks == 2
    assert found.oldest_open_s == pytest.approx(60, abs=30)


def test_keys_of_other_types_count_as_empty(
    settings: Settings, redis: Redis, keys: Keys, namespace: str
) -> None:
    """A key of another type, which a producer may write, counts as empty and spoils no other."""
    post(redis, namespace, "a", priority=5)
    for key in (queue_lists(namespace)[0], keys.workers, keys.pool, keys.dead, keys.pushes):
        redis.set(key, "x")
    redis.set(keys.open, "x")
    found = read(settings)
    assert (found.waiting, found.workers, found.dead_letters, found.open_tasks) == (1, 0, 0, 0)


def test_without_redis_nothing_is_read(namespace: str) -> None:
    """The error of redis-py is raised; the caller must not take it for an empty queue."""
    settings = pool_settings(f"redis://127.0.0.1:{embedded.free_port()}/0", namespace)
    with pytest.raises(RedisConnectionError):
        read(settings)
