"""The lease thread: what it renews, which tasks it stops, and when the process is unwell."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient, TaskStatus
from tests.record.box import lapse_all, post, taken
from tests.record.owners import (
    ends_s,
    is_subscribed,
    lapse,
    now_s,
    take,
    take_over,
    until,
)
from tests.record.reconcilers import hold
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages
from worker.job_control import Stop
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.lease import Lease
from worker.recovery.timing import MESSAGE_MARGIN_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


@pytest.fixture
def tasks() -> ActiveTasks:
    """The tasks of this process."""
    return ActiveTasks()


@pytest.fixture
def leases(redis: Redis, keys: Keys, tasks: ActiveTasks) -> Iterator[Callable[..., Lease]]:
    """Creates leases whose threads are not started; each is closed after the test.

    `period_s` replaces the time between two renewals.
    """
    made: list[Lease] = []

    def make(lease_s: float, *tags: str, period_s: float | None = None) -> Lease:
        redis.delete(UNACKED, UNACKED_INDEX)
        lease = Lease(
            redis, keys, tasks, HeldMessages(redis), lambda: tags, lease_s, owner="host:w:1"
        )
        if period_s is not None:
            lease._period_s = lease._idle_period_s = period_s
        made.append(lease)
        return lease

    yield make
    for each in made:
        each.close()


def is_later(lease: Lease, renewed_s: float) -> bool:
    """Whether a renewal has begun after another."""
    return lease._renewed_s > renewed_s


def wait_for_renewals(lease: Lease) -> None:
    """Wait until two renewals have begun and ended."""
    for _ in range(2):
        renewed_s = lease._renewed_s
        until(partial(is_later, lease, renewed_s))


def test_tasks_and_messages_are_renewed(
    redis: Redis, keys: Keys, tasks: ActiveTasks, records: TaskRecord, task_id: str
) -> None:
    """A renewal holds each task for a lease from now, and each message for a margin more."""
    redis.delete(UNACKED, UNACKED_INDEX)
    tags: list[str] = []
    lease = Lease(redis, keys, tasks, HeldMessages(redis), lambda: tags, 40.0, owner="host:w:1")
    post(redis, keys.namespace, task_id)
    tags.append(taken(redis, "first", keys.namespace, lease_s=1.0))
    hold(tasks, take(records, task_id))
    lapse(redis, keys, task_id)
    lapse_all(redis, "first")
    before_s = now_s(redis)
    lease.renew()
    task_s = ends_s(redis, keys, task_id)
    message_s = float(redis.zscore(UNACKED_INDEX, tags[0]) or 0)
    assert before_s + 40 <= task_s <= now_s(redis) + 40
    margin_s = 40 + MESSAGE_MARGIN_S
    assert before_s + margin_s <= message_s <= now_s(redis) + margin_s
    assert lease.is_well


def test_the_thread_renews_in_time(
    leases: Callable[..., Lease],
    records: TaskRecord,
    redis: Redis,
    tasks: ActiveTasks,
    task_id: str,
) -> None:
    """The lease of a held task is moved on in every period, that of a removed one no more."""
    lease = leases(30.0, period_s=0.02)
    task = hold(tasks, take(records, task_id))
    lease.start()
    for _ in range(3):
        lapse(redis, records.keys, task_id)
        until(lambda: ends_s(redis, records.keys, task_id) > now_s(redis) + 20)
    tasks.remove(task)
    wait_for_renewals(lease)  # one that began before the removal may have been running
    lapse(redis, records.keys, task_id)
    wait_for_renewals(lease)
    assert ends_s(redis, records.keys, task_id) < now_s(redis)


def test_a_new_claim_is_renewed_at_once(
    leases: Callable[..., Lease],
    redis: Redis,
    keys: Keys,
    tasks: ActiveTasks,
    records: TaskRecord,
) -> None:
    """A new claim is renewed at once, as the lease of its message may end before the period."""
    lease = leases(3600.0, period_s=900.0)
    lease.start()
    until(partial(is_subscribed, redis, keys))
    claim = take(records, "t")
    lapse(redis, keys, "t")
    hold(tasks, claim)
    until(lambda: ends_s(redis, keys, "t") > now_s(redis))


def test_a_cancel_is_noticed_at_once(
    leases: Callable[..., Lease],
    tasks: ActiveTasks,
    records: TaskRecord,
    client: GenerationClient,
    task_id: str,
) -> None:
    """A cancel's pub/sub message stops its task at once, before any renewal; others run on."""
    lease = leases(3600.0, period_s=900.0)
    task = hold(tasks, take(records, task_id))
    other = hold(tasks, take(records, "another"))
    lease.start()
    until(partial(is_subscribed, client.redis, client.keys))
    assert client.handle(task_id).cancel() is TaskStatus.RUNNING
    until(lambda: task.control.asked() is Stop.CANCELLED)
    assert other.control.asked() is None
    assert len(tasks.claimed()) == 2


def test_the_cancel_of_another_workers_task_is_ignored(
    leases: Callable[..., Lease],
    tasks: ActiveTasks,
    records: TaskRecord,
    client: GenerationClient,
    task_id: str,
) -> None:
    """A cancel of a task that another process runs, or a channel's noise, stops nothing here."""
    lease = leases(3600.0, period_s=0.5)
    task = hold(tasks, take(records, "mine"))
    take(records, task_id)
    lease.start()
    until(partial(is_subscribed, client.redis, client.keys))
    client.handle(task_id).cancel()
    client.redis.publish(client.keys.control, b"\xff")
    renewed_s = lease._renewed_s
    until(partial(is_later, lease, renewed_s))
    assert task.control.asked() is None


def test_a_cancel_whose_pubsub_message_was_lost_is_noticed_by_the_next_renewal(
    leases: Callable[..., Lease],
    tasks: ActiveTasks,
    records: TaskRecord,
    redis: Redis,
    keys: Keys,
    task_id: str,
) -> None:
    """A cancel whose pub/sub message was lost is noticed by the next renewal, from the record."""
    lease = leases(2.0)
    task = hold(tasks, take(records, task_id))
    redis.hset(keys.task(task_id), "cancel_requested", 1)
    lease.renew()
    assert task.control.asked() is Stop.CANCELLED
    assert len(tasks.claimed()) == 1


def test_a_task_that_another_worker_claimed_is_stopped(
    leases: Callable[..., Lease],
    tasks: ActiveTasks,
    records: TaskRecord,
    other: TaskRecord,
    redis: Redis,
    task_id: str,
) -> None:
    """A task that another worker claimed is stopped and renewed no more; the new lease is kept."""
    lease = leases(3600.0)
    task = hold(tasks, take(records, task_id))
    take_over(other, task_id)
    theirs_s = ends_s(redis, records.keys, task_id)
    lease.renew()
    assert task.control.asked() is Stop.SUPERSEDED
    assert tasks.claimed() == []
    assert ends_s(redis, records.keys, task_id) == theirs_s


def test_a_late_answer_for_an_earlier_claim_does_not_stop_a_later_one(
    leases: Callable[..., Lease],
    tasks: ActiveTasks,
    records: TaskRecord,
    task_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The task may end and be claimed here again while a renewal of its first claim is running."""
    lease = leases(3600.0)
    first_claim = take(records, task_id)
    first = hold(tasks, first_claim)
    claimed_then = tasks.claimed()
    records.requeue(first_claim, {"reason": "r"}, counts=True)
    tasks.remove(first)
    second = hold(tasks, second_claim := take(records, task_id))
    monkeypatch.setattr(tasks, "claimed", lambda: claimed_then)
    lease.renew()
    monkeypatch.undo()
    assert first.control.asked() is Stop.SUPERSEDED
    assert second.control.asked() is None
    assert tasks.claimed() == [(second, second_claim)]
