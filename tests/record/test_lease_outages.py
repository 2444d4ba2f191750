"""The lease thread during an outage of a server, and with a wrong clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient
from api_contracts.redis_io.connection import connect, connect_impatiently
from tests.record.box import lapse_all, post, taken
from tests.record.owners import (
    ask,
    ends_s,
    is_subscribed,
    lapse,
    now_s,
    take,
    until,
    worker,
)
from tests.record.reconcilers import hold
from worker import embedded
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages
from worker.job_control import Stop
from worker.record.claim import Held
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.lease import MISSED_PINGS, Lease

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from api_contracts.names import Keys


def test_an_outage_makes_the_process_unwell_and_stops_no_task(tmp_path: Path, keys: Keys) -> None:
    """An outage makes a process unwell after a lease and stops no task; then it is well again."""
    port, tasks = embedded.free_port(), ActiveTasks()
    with embedded.redis_server(tmp_path, port) as url:
        redis = connect_impatiently(url, 0.5)
        task = hold(tasks, take(worker(redis, keys, "first", 1.0), "t"))
        lease = Lease(redis, keys, tasks, HeldMessages(redis), list, 1.0, owner="host:w:1")
        lease.start()
        until(lambda: is_subscribed(redis, keys) and lease.is_well)
    until(lambda: not lease.is_well)
    assert lease.silent_s >= 1.0
    assert task.control.asked() is None
    with embedded.redis_server(tmp_path, port) as url, GenerationClient(url, keys.namespace) as far:
        until(lambda: lease.is_well)
        until(lambda: ends_s(connect(url), keys, "t") > now_s(far.redis))
        until(lambda: is_subscribed(far.redis, keys))
        far.handle("t").cancel()
        until(lambda: task.control.asked() is Stop.CANCELLED)
        lease.close()


@pytest.mark.parametrize("gone", ["records", "messages"])
def test_a_process_without_tasks_notices_an_outage_too(
    redis: Redis, keys: Keys, tmp_path: Path, gone: str
) -> None:
    """A process without tasks is unwell in an outage too: it could not run what it would claim."""
    with embedded.redis_server(tmp_path) as url:
        away = connect_impatiently(url, 0.5)
        records, book = (away, redis) if gone == "records" else (redis, away)
        lease = Lease(records, keys, ActiveTasks(), HeldMessages(book), list, 1.0, owner="host:w:1")
        lease.start()
        until(lambda: is_subscribed(records, keys) and lease.is_well)
    until(lambda: not lease.is_well)
    lease.close()


class LostPubSub:
    """A subscription whose server is gone without a word: pings are sent, none is answered."""

    health_check_response_counter = 0
    is_closed = False

    def get_message(self, timeout: float) -> None:  # noqa: ARG002  # redis-py's signature
        """Send a ping; nothing comes."""
        self.health_check_response_counter += 1

    def close(self) -> None:
        """Note it."""
        self.is_closed = True


def test_a_lost_subscription_is_replaced(redis: Redis, keys: Keys) -> None:
    """A wait ends when its pings are not answered, and the next one subscribes again."""
    lease = Lease(redis, keys, ActiveTasks(), HeldMessages(redis), list, 60.0, owner="host:w:1")
    lease._idle_period_s = 10.0
    lease._pubsub = lost = LostPubSub()
    lease._wait()
    assert lost.is_closed
    assert lost.health_check_response_counter == MISSED_PINGS
    lease._idle_period_s = 0.0
    lease._wait()
    assert is_subscribed(redis, keys)
    lease.close()


@pytest.mark.parametrize("wrong_s", [-1e6, 1e6])
def test_a_wrong_clock_of_the_worker_changes_nothing(
    redis: Redis, keys: Keys, task_id: str, monkeypatch: pytest.MonkeyPatch, wrong_s: float
) -> None:
    """A wrong clock of the worker changes no lease: leases depend on Redis's clock alone."""
    right, redis_s = time.time, now_s(redis)
    monkeypatch.setattr(time, "time", lambda: right() + wrong_s)
    messages = HeldMessages(redis)
    redis.delete(UNACKED, UNACKED_INDEX)
    records, other = worker(redis, keys, "first", 20.0), worker(redis, keys, "other")
    post(redis, keys.namespace, task_id)
    tag = taken(redis, "first", keys.namespace, lease_s=20.0)
    claim = take(records, task_id)
    assert abs(claim.claimed_at_s - redis_s) < 10
    hold(tasks := ActiveTasks(), claim)
    Lease(redis, keys, tasks, messages, lambda: [tag], 20.0, owner="host:w:1").renew()
    assert messages.overdue() == []
    assert isinstance(ask(other, task_id), Held)
    assert 0 < ends_s(redis, keys, task_id) - redis_s < 60
    lapse(redis, keys, task_id)
    lapse_all(redis, "first")
    assert messages.overdue() == [tag]
    assert take(other, task_id).attempt == 2
