"""The lease thread: what it keeps, whom it asks to stop, and when it says that it is not well."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient, TaskStatus
from tests.record.box import lapse_all, post, taken
from tests.record.owners import (
    ask,
    ends_s,
    is_subscribed,
    lapse,
    now_s,
    take,
    take_over,
    until,
    worker,
)
from worker.broker.held_messages import MARGIN_S, UNACKED, UNACKED_INDEX, HeldMessages
from worker.job_control import Control, Stop
from worker.record.task_record import Held, TaskRecord
from worker.recovery import lease as module
from worker.recovery.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from api_contracts.names import Keys


@pytest.fixture
def leases(redis: Redis, keys: Keys) -> Iterator[Callable[..., Lease]]:
    """Leases, their threads not begun; they end with the test."""
    made: list[Lease] = []

    def make(lease_s: float, *tags: str) -> Lease:
        redis.delete(UNACKED, UNACKED_INDEX)
        made.append(Lease(redis, keys, HeldMessages(redis), lambda: tags, lease_s))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_tasks_and_messages_are_renewed(
    leases: Callable[..., Lease], claims: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """One round holds each task for a lease from now, and each message a margin longer."""
    tags: list[str] = []
    lease = Lease(redis, keys, HeldMessages(redis), lambda: tags, 40.0)
    post(redis, keys.namespace, task_id)
    tags.append(taken(redis, "first", keys.namespace, lease_s=1.0))
    lease.hold(take(claims, task_id), Control())
    lapse(redis, keys, task_id)
    lapse_all(redis, "first")
    before_s = now_s(redis)
    lease.renew()
    task_s = ends_s(redis, keys, task_id)
    message_s = float(redis.zscore(UNACKED_INDEX, tags[0]) or 0)
    assert before_s + 40 <= task_s <= now_s(redis) + 40
    assert before_s + 40 + MARGIN_S <= message_s <= now_s(redis) + 40 + MARGIN_S
    assert lease.is_well


def test_the_thread_renews_in_time(
    leases: Callable[..., Lease], redis: Redis, keys: Keys, task_id: str
) -> None:
    """A task that is held stays held, for many leases; let go, it is anybody's a lease later."""
    lease, other = leases(2.0), worker(redis, keys, "other")
    claim = take(worker(redis, keys, "first", 2.0), task_id)
    lease.start()
    lease.hold(claim, Control())
    first_s = ends_s(redis, keys, task_id)

    def is_kept_for_two_leases() -> bool:
        assert isinstance(ask(other, task_id), Held)
        return ends_s(redis, keys, task_id) > first_s + 4

    until(is_kept_for_two_leases)
    lease.let_go(claim)
    until(lambda: not isinstance(ask(other, task_id), Held))


def test_a_cancel_is_heard_at_once(  # fixtures
    leases: Callable[..., Lease],
    claims: TaskRecord,
    client: GenerationClient,
    task_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The nudge of a cancel is enough, long before the next renewal; others run on."""
    monkeypatch.setattr(module, "MOST_S", 900.0)
    lease, control, calm = leases(3600.0), Control(), Control()
    lease.hold(take(claims, task_id), control)
    lease.hold(take(claims, "another"), calm)
    lease.start()
    until(partial(is_subscribed, client.redis, client.keys))
    assert client.handle(task_id).cancel() is TaskStatus.RUNNING
    until(lambda: control.asked() is Stop.CANCELLED)
    assert calm.asked() is None
    assert len(lease.held()) == 2


def test_a_nudge_for_another_worker_is_none(
    leases: Callable[..., Lease], claims: TaskRecord, client: GenerationClient, task_id: str
) -> None:
    """A cancel of a task that another process runs stops nothing here."""
    lease, control = leases(3600.0), Control()
    lease.hold(take(claims, "mine"), control)
    take(claims, task_id)
    lease.start()
    until(partial(is_subscribed, client.redis, client.keys))
    client.handle(task_id).cancel()
    client.redis.publish(client.keys.control, b"\xff")
    renewed = lease._renewed_s
    until(lambda: lease._renewed_s > renewed)
    assert control.asked() is None


def test_a_cancel_whose_nudge_was_lost_is_heard_with_the_next_renewal(
    leases: Callable[..., Lease], claims: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """The record is the truth; the channel only makes it quick."""
    lease, control = leases(2.0), Control()
    lease.hold(take(claims, task_id), control)
    lease.start()
    redis.hset(keys.task(task_id), "cancel_requested", 1)
    until(lambda: control.asked() is Stop.CANCELLED)


def test_one_that_was_overtaken_is_asked_to_stop(
    leases: Callable[..., Lease], claims: TaskRecord, other: TaskRecord, redis: Redis, task_id: str
) -> None:
    """It stops, is renewed no more, and the new owner's lease is left alone."""
    lease, control = leases(3600.0), Control()
    lease.hold(take(claims, task_id), control)
    take_over(other, task_id)
    theirs_s = ends_s(redis, claims.keys, task_id)
    lease.renew()
    assert control.asked() is Stop.SUPERSEDED
    assert lease.held() == []
    assert ends_s(redis, claims.keys, task_id) == theirs_s


def test_an_earlier_claim_lets_a_later_one_be(
    leases: Callable[..., Lease], claims: TaskRecord, task_id: str
) -> None:
    """What is heard late of a claim that has ended is not taken for the one that followed it."""
    lease, first = leases(3600.0), take(claims, task_id)
    claims.requeue(first, {"reason": "r"}, counts=True)
    second, control = take(claims, task_id), Control()
    lease.hold(second, control)
    lease.let_go(first)
    assert lease.held() == [(second, control)]
