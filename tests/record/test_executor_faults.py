"""Faults of tasks, models, the process and Redis: what becomes of the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.record.busy_executor import BROKEN, WAIT_S, Busy
from tests.record.owners import kinds, record, save_checkpoint, take
from worker.errors import AdapterLoadError, ModelLoadError
from worker.execution.circuit_breaker import MAX_FAILURES
from worker.execution.delivery import Delivery
from worker.execution.outcome import TaskFailed, TaskRequeued
from worker.execution.resolved_request import ResolvedRequest
from worker.record.claim import WriteAnswer
from worker.recovery.lease import Lease

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


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


def test_an_adapter_that_is_broken_is_no_fault_of_the_process(busy: Busy) -> None:
    """However many tasks name one, they fail, and the process serves the others."""
    busy.error = AdapterLoadError("not finite", "ink of m", retryable=False)
    busy.go_on.set()
    names = [f"t{number}" for number in range(MAX_FAILURES)]
    for future in (busy.first, *map(busy.deliver, names)):
        outcome = future.result(WAIT_S)
        assert isinstance(outcome, TaskFailed)
        assert (outcome.error.code, outcome.error.retryable) == ("model_load_failed", False)
    assert (busy.broken, busy.gate.refusal) == ([], None)


def test_an_adapter_that_may_be_loaded_later_counts_once(busy: Busy) -> None:
    """Its tasks are requeued, and have one cause; other adapters are other causes."""
    for number, adapter in enumerate(("ink", "ink", "ink", "oil", "oil", "wax")):
        assert busy.broken == []
        busy.error = AdapterLoadError("no memory", f"{adapter} of m", retryable=True)
        busy.go_on.set()
        future = busy.deliver(f"t{number}") if number else busy.first
        assert future.result(WAIT_S) == TaskRequeued("model_load_failed: no memory", counts=True)
    assert len(busy.broken) == 1


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
