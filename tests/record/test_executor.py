"""Concurrent deliveries in one process whose engine is busy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.record.busy_executor import BROKEN, WAIT_S, Busy
from tests.record.owners import ask, kinds, lapse, record, take, take_over, until
from worker.execution.delivery import Delivery
from worker.execution.outcome import (
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    from_record,
)
from worker.record.claim import Claim, Ended

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.names import Keys
    from worker.execution.outcome import Outcome
    from worker.record.task_record import TaskRecord


def is_taken_over(other: TaskRecord, task_id: str) -> bool:
    """Try to claim a task whose lease expired; the lease thread may renew it in between."""
    lapse(other.redis, other.keys, task_id)
    return isinstance(ask(other, task_id), Claim)


def test_a_task_that_waits_for_the_engine_can_be_cancelled(
    busy: Busy, client: GenerationClient
) -> None:
    """A cancelled task that waits for the engine ends at once; the task before it runs on."""
    second = busy.deliver("second")
    handle = client.handle("second")
    while client.status_many(["second"])["second"] is None:
        pass
    handle.cancel()
    assert second.result(WAIT_S) == TaskCancelled(0)
    assert not busy.first.done()


def test_a_drain_requeues_what_waits_for_the_engine(busy: Busy) -> None:
    """A task that the engine has not begun is requeued at once, and the attempt does not count."""
    second = busy.deliver("second")
    while len(busy.tasks.claimed()) < 2:
        pass
    busy.executor.drain()
    assert second.result(WAIT_S) == TaskRequeued("worker drained at step 0", counts=False)
    assert not busy.first.done()


def test_a_duplicate_occupies_no_slot(busy: Busy) -> None:
    """A second message of a running task is dropped at once, even by the process that runs it."""
    assert isinstance(busy.deliver("first").result(WAIT_S), TaskDropped)
    assert not busy.first.done()


def test_the_log_has_the_claim_and_end_of_each_attempt(
    busy: Busy, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has a line for each claim and end, with code and reason, and without the request."""
    caplog.set_level("INFO")
    busy.deliver("first").result(WAIT_S)
    busy.go_on.set()
    busy.first.result(WAIT_S)
    busy.deliver("first").result(WAIT_S)
    busy.executor.execute(Delivery("bad", {"prompt": 5, "secret words": "a"}))
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name == "worker.execution.executor"
    ]
    assert lines[0].startswith("task first: message dropped, a duplicate")
    assert lines[1:] == [
        f"task first attempt 1: requeued ({BROKEN})",
        "task first attempt 2: claimed (fence 2)",
        "task first attempt 2: failed (model_load_failed: broken)",
        "task bad attempt 1: claimed (fence 1)",
        "task bad attempt 1: failed (invalid_request: prompt, secret words)",
    ]


@pytest.mark.parametrize("prompt", [5, "\ud800", "x" * 10_000])
def test_the_record_of_a_refused_request_has_its_pushes(
    busy: Busy, records: TaskRecord, prompt: object
) -> None:
    """The record of a refused request has its pushes, however invalid or long the rest is."""
    asked = {"prompt": prompt, "webhook": "https://a.b/"}
    assert isinstance(busy.executor.execute(Delivery("refused", asked)), TaskFailed)
    busy.executor.close("refused")
    (due,) = records.pushes.take(9)
    assert due.target == "https://a.b/"


def test_a_task_that_another_worker_claimed_while_it_waited_writes_nothing(
    busy: Busy, other: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """A task that another worker claimed while it waited is dropped and writes nothing."""
    second = busy.deliver("second")
    while len(busy.tasks.claimed()) < 2:
        pass
    until(lambda: is_taken_over(other, "second"))
    before = record(redis, keys, "second"), kinds(redis, keys, "second")
    assert second.result(WAIT_S) == TaskDropped("another worker has claimed it")
    assert (record(redis, keys, "second"), kinds(redis, keys, "second")) == before


def test_a_message_past_its_expires_is_not_started(busy: Busy, redis: Redis, keys: Keys) -> None:
    """A message past its `expires` is not started; its record ends as `expired` with one event."""
    late = Delivery("late", {"prompt": "x", "model": keys.namespace}, expires_at_s=1000.0)
    assert busy.executor.execute(late) == TaskExpired(0, by_message=True)
    assert busy.executor.execute(late) == TaskExpired(0, by_message=True)  # as before
    assert record(redis, keys, "late")["status"] == "expired"
    assert kinds(redis, keys, "late") == ["expired"]


def test_a_task_without_attempts_left_is_a_dead_letter(
    busy: Busy, other: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """A task without attempts left fails with `attempts_exhausted` and is a dead letter."""
    take(other, "poison", max_attempts=2)
    take_over(other, "poison", max_attempts=2)
    redis.hset(keys.task("poison"), "lease_until", "1.0")
    outcome = busy.deliver("poison").result(WAIT_S)
    assert isinstance(outcome, TaskFailed)
    assert outcome.error.code == "attempts_exhausted"
    assert kinds(redis, keys, "poison") == ["started", "started", "failed"]
    assert redis.xlen(keys.dead) == 1


def test_a_cancel_wins_over_a_drain(
    busy: Busy, client: GenerationClient, redis: Redis, keys: Keys
) -> None:
    """A drained task whose cancel was requested ends as cancelled and is not requeued."""
    second = busy.deliver("second")
    while len(busy.tasks.claimed()) < 2:
        pass
    redis.hset(keys.task("second"), "cancel_requested", 1)
    busy.executor.drain()
    assert second.result(WAIT_S) == TaskCancelled(0)
    assert kinds(redis, keys, "second")[-1] == "cancelled"


@pytest.mark.parametrize(
    ("status", "outcome", "wants"),
    [
        ("cancelled", {}, TaskCancelled(0)),
        ("cancelled", {"step": 3, "later": 1}, TaskCancelled(3)),
        ("expired", {}, TaskExpired(0)),
        ("expired", {"step": 3, "by_message": True, "later": 1}, TaskExpired(3, by_message=True)),
    ],
)
def test_outcomes_of_other_versions_can_be_read(
    status: str, outcome: dict[str, Any], wants: Outcome
) -> None:
    """Outcomes in the records of other versions can be read, with fields missing or unknown."""
    assert from_record(Ended(status, outcome)) == wants
