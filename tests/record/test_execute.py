"""Deliveries beside each other in one process, while the engine is busy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.record.busy import WAIT_S, Busy
from tests.record.owners import ask, kinds, lapse, record, take, take_over, until
from worker.errors import ModelLoadError
from worker.execution import attempt
from worker.execution.circuit_breaker import MAX_FAILURES
from worker.execution.outcome import (
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    from_record,
)
from worker.execution.resolved_request import Delivery, ResolvedRequest
from worker.record.task_record import Claim, Ended, WriteAnswer
from worker.recovery.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.names import Keys
    from worker.execution.outcome import Outcome
    from worker.record.task_record import TaskRecord

BROKEN = "model_load_failed: told to"


@pytest.fixture
def busy(claims: TaskRecord, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    """The executor, running task `first`."""
    monkeypatch.setattr(attempt, "LOADING_EVENT_PERIOD_S", 0.05)
    made = Busy(claims, namespace)
    made.first = made.deliver("first")
    assert made.building.wait(WAIT_S)
    yield made
    made.close()


def is_taken_over(other: TaskRecord, task_id: str) -> bool:
    """Try to claim a task whose lease expired; the lease thread may renew it in between."""
    lapse(other.redis, other.keys, task_id)
    return isinstance(ask(other, task_id), Claim)


def test_a_task_in_line_hears_of_its_cancel(busy: Busy, client: GenerationClient) -> None:
    """A claimed task that waits for the engine ends when it is cancelled, not when it is its turn.

    The task before it goes on.
    """
    second = busy.deliver("second")
    handle = client.handle("second")
    while client.status_many(["second"])["second"] is None:
        pass
    handle.cancel()
    assert second.result(WAIT_S) == TaskCancelled(0)
    assert not busy.first.done()


def test_a_drain_gives_back_what_is_in_line(busy: Busy) -> None:
    """A drain waits for no turn: what has not begun goes back at once, and is no attempt."""
    second = busy.deliver("second")
    while len(busy.tasks.claimed()) < 2:
        pass
    busy.executor.drain()
    assert second.result(WAIT_S) == TaskRequeued("worker drained at step 0", counts=False)
    assert not busy.first.done()


def test_a_duplicate_takes_no_slot(busy: Busy) -> None:
    """A second message of a running task is dropped at once, also by the process that runs it."""
    assert isinstance(busy.deliver("first").result(WAIT_S), TaskDropped)
    assert not busy.first.done()


def test_a_fault_of_ours_is_an_attempt(
    busy: Busy, client: GenerationClient, redis: Redis, keys: Keys
) -> None:
    """A task that fails for a reason of ours goes back, and fails with the last of its attempts."""
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
    """Other attempts would find the same files: it is a dead letter after the first.

    Three in a row stop the process, as another one may have a good copy of the model.
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


def test_the_log_tells_what_became_of_a_task(busy: Busy, caplog: pytest.LogCaptureFixture) -> None:
    """Claim and end of each attempt are a line, with the code and the reason of a failure."""
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
    assert lines[0].startswith("task first: dropped, a duplicate")
    assert lines[1:] == [
        f"task first attempt 1: requeued ({BROKEN})",
        "task first attempt 2: claimed (fence 2)",
        "task first attempt 2: failed (model_load_failed: told to)",
        "task bad attempt 1: claimed (fence 1)",
        "task bad attempt 1: failed (invalid_request: prompt, secret words)",
    ]


def test_a_request_that_breaks_the_check_is_refused(
    busy: Busy, monkeypatch: pytest.MonkeyPatch, redis: Redis, keys: Keys
) -> None:
    """Whatever breaks there: raised before the claim, its message would come back for ever."""

    def broken(*_: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr(ResolvedRequest, "of", broken)
    outcome = busy.executor.execute(Delivery("odd", {"prompt": "x"}))
    assert isinstance(outcome, TaskFailed)
    assert (outcome.error.code, outcome.error.retryable) == ("internal", False)
    assert "ArithmeticError" in outcome.error.message
    assert record(redis, keys, "odd")["status"] == "failed"


@pytest.mark.parametrize("prompt", [5, "\ud800", "x" * 10_000])
def test_who_is_to_be_told_of_a_refusal_is_kept(
    busy: Busy, claims: TaskRecord, prompt: object
) -> None:
    """However odd or long the rest of the request is."""
    asked = {"prompt": prompt, "webhook": "https://a.b/"}
    assert isinstance(busy.executor.execute(Delivery("refused", asked)), TaskFailed)
    busy.executor.close("refused")
    (due,) = claims.pushes.take(9)
    assert due.target == "https://a.b/"


def test_a_process_that_fails_them_all_takes_no_more(busy: Busy) -> None:
    """After three tasks it says why, once, gives back what it has, and nothing more is an attempt.

    The three have one attempt less each; the fourth has none less.
    """
    busy.go_on.set()
    assert busy.gate.refusal is None
    assert busy.first.result(WAIT_S) == TaskRequeued(BROKEN, counts=True)
    for name in ("second", "third"):
        assert busy.broken == []
        assert busy.deliver(name).result(WAIT_S) == TaskRequeued(BROKEN, counts=True)
    (reason,) = busy.broken
    assert busy.gate.refusal == reason
    assert "told to" in reason
    fourth = busy.deliver("fourth").result(WAIT_S)
    assert fourth == TaskRequeued("worker drained at step 0", counts=False)
    assert len(busy.broken) == 1


def test_a_process_without_a_lease_says_so(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it runs goes on; it would claim nothing more."""
    monkeypatch.setattr(Lease, "is_well", property(lambda _: False))
    assert "no lease could be renewed" in str(busy.gate.refusal)
    assert not busy.first.done()
    monkeypatch.undo()
    assert busy.gate.refusal is None


def test_one_that_is_overtaken_in_line_writes_nothing(
    busy: Busy, other: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """It stops when it hears that the task is another's, and leaves the record to that."""
    second = busy.deliver("second")
    while len(busy.tasks.claimed()) < 2:
        pass
    until(lambda: is_taken_over(other, "second"))
    before = record(redis, keys, "second"), kinds(redis, keys, "second")
    assert second.result(WAIT_S) == TaskDropped("another worker has claimed it")
    assert (record(redis, keys, "second"), kinds(redis, keys, "second")) == before


def test_a_message_that_came_too_late_is_not_begun(busy: Busy, redis: Redis, keys: Keys) -> None:
    """Its record says `expired`, in one event, and how it ended is told apart for Celery."""
    late = Delivery("late", {"prompt": "x", "model": keys.namespace}, expires_at_s=1000.0)
    assert busy.executor.execute(late) == TaskExpired(0, by_message=True)
    assert busy.executor.execute(late) == TaskExpired(0, by_message=True)  # as before
    assert record(redis, keys, "late")["status"] == "expired"
    assert kinds(redis, keys, "late") == ["expired"]


def test_one_that_took_too_many_workers_is_dead(
    busy: Busy, other: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """With its last attempt gone it ends, and goes to the dead letters."""
    take(other, "poison", max_attempts=2)
    take_over(other, "poison", max_attempts=2)
    redis.hset(keys.task("poison"), "lease_until", "1.0")
    outcome = busy.deliver("poison").result(WAIT_S)
    assert isinstance(outcome, TaskFailed)
    assert outcome.error.code == "attempts_exhausted"
    assert kinds(redis, keys, "poison") == ["started", "started", "failed"]
    assert redis.xlen(keys.dead) == 1


def test_a_redis_that_stays_away_is_nobodys_fault(
    busy: Busy, claims: TaskRecord, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message goes back; no dead letter, nothing that ends the process, as no task failed."""

    def stay_away(_task_id: str) -> bytes | None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(claims, "load_checkpoint", stay_away)
    names = [f"t{number}" for number in range(MAX_FAILURES + 1)]
    for name in names:
        claim = take(claims, name)
        assert claims.save_checkpoint(claim, 1, b"state") is WriteAnswer.WRITTEN
        redis.hset(keys.task(name), "lease_until", "1.0")
        with pytest.raises(RedisConnectionError):
            busy.deliver(name).result(WAIT_S)
        assert record(redis, keys, name)["status"] == "running"
    assert (busy.broken, redis.xlen(keys.dead)) == ([], 0)
    assert [task.task_id for task, _ in busy.tasks.claimed()] == ["first"]


def test_a_process_that_hangs_gives_back_and_claims_nothing(
    busy: Busy, client: GenerationClient, redis: Redis, keys: Keys
) -> None:
    """What it gives back is another's to take; what somebody wants to end, ends."""
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


def test_a_cancel_that_meets_a_drain_ends_the_task(
    busy: Busy, client: GenerationClient, redis: Redis, keys: Keys
) -> None:
    """It would wait for another worker only to hear of it, and perhaps none comes."""
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
def test_ends_of_other_versions_are_understood(
    status: str, outcome: dict[str, Any], wants: Outcome
) -> None:
    """While versions run beside each other one reads what another wrote."""
    assert from_record(Ended(status, outcome)) == wants
