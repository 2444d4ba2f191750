"""Concurrent deliveries in one process whose engine is busy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.record.busy_executor import WAIT_S, Busy
from tests.record.owners import ask, kinds, lapse, record, save_checkpoint, take, take_over, until
from worker.errors import ModelLoadError
from worker.execution import attempt
from worker.execution.circuit_breaker import MAX_FAILURES
from worker.execution.delivery import Delivery
from worker.execution.outcome import (
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    from_record,
)
from worker.execution.resolved_request import ResolvedRequest
from worker.record.claim import Claim, Ended, WriteAnswer
from worker.recovery.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.names import Keys
    from worker.execution.outcome import Outcome
    from worker.record.task_record import TaskRecord

BROKEN = "model_load_failed: broken"


@pytest.fixture(scope="module")
def torch_is_imported() -> None:
    """The engine imports torch with its first job; that time is not the first test's."""
    importlib.import_module("worker.engine.runner")


@pytest.fixture
def busy(
    torch_is_imported: None,
    records: TaskRecord,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Busy]:
    """The executor, running task `first`."""
    monkeypatch.setattr(attempt, "LOADING_EVENT_PERIOD_S", 0.05)
    made = Busy(records, namespace)
    made.first = made.deliver("first")
    assert made.building.wait(WAIT_S)
    yield made
    made.close()


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


def test_a_fault_of_the_worker_counts_as_an_attempt(
    busy: Busy, client: GenerationClient, redis: Redis, keys: Keys
) -> None:
    """A task that a fault of the worker stopped is requeued, and fails on its last attempt."""
    busy.go_on.set()
    assert busy.first.result(WAIT_S) == TaskRequeued(BROKEN, counts=True)
    assert record(redis, keys, "first")["status"] == "queued"
    assert busy.tasks.claimed() == []
    last = busy.deliver("first").result(WAIT_S)
    assert isinstance(last, TaskFailed)
    assert last.error.code == "model_load_failed"
    told = [kind for kind in kinds(redis, client.keys, "first") if kind != "loading"]
    assert told == ["started", "requeued", "started", "failed"]
    assert record(redis, keys, "first")["attempt"] == "2"
    assert busy.broken == []


def test_a_model_that_is_missing_or_broken_fails_its_tasks_at_once(
    busy: Busy, client: GenerationClient, redis: Redis, keys: Keys
) -> None:
    """A task whose model is missing or broken becomes a dead letter after one attempt.

    Other workers would find the same files. Three in a row stop the process: another worker may
    have a good copy of the model.
    """
    busy.error = ModelLoadError("no such folder; do this", retryable=False)
    busy.go_on.set()
    for future in (busy.first, busy.deliver("second"), busy.deliver("third")):
        outcome = future.result(WAIT_S)
        assert isinstance(outcome, TaskFailed)
        assert (outcome.error.code, outcome.error.retryable) == ("model_load_failed", False)
    (reason,) = busy.broken
    assert "do this" in reason
    assert busy.gate.refusal == reason
    assert [kind for kind in kinds(redis, keys, "first") if kind != "loading"] == [
        "started", "failed",
    ]  # fmt: skip
    assert redis.xlen(keys.dead) == 3
    fourth = busy.deliver("fourth").result(WAIT_S)
    assert fourth == TaskRequeued("worker drained at step 0", counts=False)


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


def test_a_request_that_breaks_validation_fails(
    busy: Busy, monkeypatch: pytest.MonkeyPatch, redis: Redis, keys: Keys
) -> None:
    """An unexpected exception fails the task: raised before the claim, it would return for ever."""

    def broken(*_: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr(ResolvedRequest, "of", broken)
    outcome = busy.executor.execute(Delivery("odd", {"prompt": "x"}))
    assert isinstance(outcome, TaskFailed)
    assert (outcome.error.code, outcome.error.retryable) == ("internal", False)
    assert "ArithmeticError" in outcome.error.message
    assert record(redis, keys, "odd")["status"] == "failed"


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


def test_a_process_in_which_every_task_fails_claims_no_more(busy: Busy) -> None:
    """A process in which three tasks fail reports the reason once and requeues the others.

    Each of the three has lost one attempt, the fourth none.
    """
    busy.go_on.set()
    assert busy.gate.refusal is None
    assert busy.first.result(WAIT_S) == TaskRequeued(BROKEN, counts=True)
    for name in ("second", "third"):
        assert busy.broken == []
        assert busy.deliver(name).result(WAIT_S) == TaskRequeued(BROKEN, counts=True)
    (reason,) = busy.broken
    assert busy.gate.refusal == reason
    assert "broken" in reason
    fourth = busy.deliver("fourth").result(WAIT_S)
    assert fourth == TaskRequeued("worker drained at step 0", counts=False)
    assert len(busy.broken) == 1


def test_a_process_that_renews_no_lease_claims_nothing(
    busy: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that renews no lease claims nothing, and claims again after a renewal."""
    monkeypatch.setattr(Lease, "is_well", property(lambda _: False))
    assert "no lease could be renewed" in str(busy.gate.refusal)
    assert not busy.first.done()
    monkeypatch.undo()
    assert busy.gate.refusal is None


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


def test_a_redis_that_stays_unavailable_fails_no_task(
    busy: Busy, records: TaskRecord, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that stays unavailable fails no task, makes no dead letter and trips no breaker."""

    def stay_away(_task_id: str) -> bytes | None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(records, "load_checkpoint", stay_away)
    names = [f"t{number}" for number in range(MAX_FAILURES + 1)]
    for name in names:
        claim = take(records, name)
        assert save_checkpoint(records, claim, 1, b"state") is WriteAnswer.WRITTEN
        redis.hset(keys.task(name), "lease_until", "1.0")
        with pytest.raises(RedisConnectionError):
            busy.deliver(name).result(WAIT_S)
        assert record(redis, keys, name)["status"] == "running"
    assert (busy.broken, redis.xlen(keys.dead)) == ([], 0)
    assert [task.task_id for task, _ in busy.tasks.claimed()] == ["first"]


def test_a_process_that_hangs_requeues_its_tasks_and_claims_nothing(
    busy: Busy, client: GenerationClient, redis: Redis, keys: Keys
) -> None:
    """A process that hangs claims nothing, and its tasks are requeued or end as cancelled."""
    second, third = busy.deliver("second"), busy.deliver("third")
    while len(busy.tasks.claimed()) < 3:
        pass
    redis.hset(keys.task("third"), "cancel_requested", 1)
    busy.executor.report_stall("it hangs")
    assert busy.gate.refusal == "a step does not end"
    kept = {name: record(redis, keys, name)["status"] for name in ("first", "second", "third")}
    assert kept == {"first": "queued", "second": "queued", "third": "cancelled"}
    assert kinds(redis, keys, "third")[-1] == "cancelled"
    for each in (second, third):
        assert not isinstance(each.result(WAIT_S), TaskFailed)


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
