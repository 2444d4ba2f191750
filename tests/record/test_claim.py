"""Claiming a task: which worker gets it, and what a claim answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ResponseError

from api_contracts import GenerationClient, TaskStatus
from api_contracts.names import MAX_MESSAGE_BYTES
from tests.record.owners import (
    ask,
    kinds,
    lapse,
    now_s,
    opened,
    record,
    save_checkpoint,
    take,
    take_over,
    told,
    worker,
)
from worker.record.claim import Ended, Held, WriteAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


def submitted_long_ago(redis: Redis, keys: Keys, task_id: str) -> None:
    redis.hset(keys.task(task_id), "submitted_at", "1000.0")


def test_a_waiting_task_is_claimed_to_run(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """The first claim is attempt 1, and event `started` names the owner."""
    claim = take(records, task_id)
    assert (claim.answer, claim.fence, claim.attempt) == ("run", 1, 1)
    assert 0 <= claim.claimed_at_s - claim.submitted_at_s < 60
    kept = record(redis, keys, task_id)
    assert (kept["status"], kept["owner"], kept["attempt"]) == ("running", "first", "1")
    event = told(redis, keys, task_id)[-1]
    assert (event["type"], event["seq"], event["attempt"]) == ("started", 2, 1)
    assert (event["worker"], event["device"]) == ("first", "cpu")


@pytest.mark.parametrize("odd", ["abc", "", "nan", "inf", "-inf"])
def test_an_odd_time_of_submission_is_an_unreadable_record(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str, odd: str
) -> None:
    """A time of submission that is no finite number makes a record unreadable: ValueError."""
    redis.hset(keys.task(task_id), "submitted_at", odd)
    with pytest.raises(ValueError, match=r"submitted_at|float"):
        take(records, task_id)


@pytest.mark.parametrize("odd", ["-1e308", "-5", "1e308", "4e9"])
def test_a_wait_is_never_negative_or_endless(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str, odd: str
) -> None:
    """A claim's wait is between 0 and the time since 1970, whatever finite time the record has."""
    redis.hset(keys.task(task_id), "submitted_at", odd)
    claim = take(records, task_id)
    assert claim.queued_s == (claim.claimed_at_s if float(odd) < 0 else 0.0)


def test_a_message_without_a_record_makes_one(
    records: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """The claim of a message without a record writes the record."""
    claim = take(records, "raw", request='{"prompt":"raw"}')
    assert (claim.answer, claim.attempt) == ("run", 1)
    assert claim.submitted_at_s == claim.claimed_at_s
    assert record(redis, keys, "raw")["request"] == '{"prompt":"raw"}'
    assert kinds(redis, keys, "raw") == ["started"]
    assert opened(redis, keys) == {"raw"}


def test_a_claim_keeps_the_request_of_the_record(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A claim never replaces the request of an existing record."""
    before = record(redis, keys, task_id)["request"]
    take(records, task_id, request='{"prompt":"forged"}')
    assert record(redis, keys, task_id)["request"] == before


def test_a_claim_may_append_no_event(records: TaskRecord, redis: Redis, keys: Keys) -> None:
    """A claim without the fields of `started` appends no event."""
    records.claim(
        "refused", started=None, request="{}", queue="q", deadline_s=None, expires_at_s=None,
        max_attempts=3,
    )  # fmt: skip
    assert kinds(redis, keys, "refused") == []


def test_a_running_task_is_held(
    records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A duplicate message of a running task is answered `held` and changes nothing."""
    take(records, task_id)
    before = record(redis, keys, task_id), told(redis, keys, task_id)
    assert ask(other, task_id) == Held("first")
    assert (record(redis, keys, task_id), told(redis, keys, task_id)) == before


def test_a_task_whose_lease_has_run_out_is_taken_over(
    records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A task whose lease has run out is claimed as the next attempt."""
    first = take(records, task_id)
    second = take_over(other, task_id)
    assert (second.answer, second.attempt) == ("run", 2)
    assert second.fence > first.fence
    assert second.submitted_at_s == first.submitted_at_s
    assert record(redis, keys, task_id)["owner"] == "other"
    assert kinds(redis, keys, task_id) == ["queued", "started", "started"]
    assert (first.lost_owner, second.lost_owner) == ("", "first")
    assert second.since_s == first.claimed_at_s


def test_a_claim_says_since_when_the_task_has_waited(
    records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """The first claim has waited since the submission, also after a resend; others since a requeue.

    Or since a resend after the requeue. A message without a record has not waited.
    """
    redis.zadd(keys.open, {task_id: now_s(redis)})  # as a reconciler that sent it again
    first = take(records, task_id)
    assert first.since_s == first.submitted_at_s < first.claimed_at_s
    assert records.requeue(first, {"reason": "drained"}, counts=False) is WriteAnswer.WRITTEN
    second = take(other, task_id)
    assert first.claimed_at_s < second.since_s < second.claimed_at_s
    assert (second.attempt, second.lost_owner) == (1, "")
    assert records.requeue(second, {"reason": "drained"}, counts=False) is WriteAnswer.WRITTEN
    resent_s = now_s(redis) - 1000
    redis.zadd(keys.open, {task_id: resent_s})
    assert take(records, task_id).since_s == pytest.approx(resent_s)
    raw = take(records, "raw")
    assert raw.since_s == raw.claimed_at_s


@pytest.mark.parametrize("end", [status for status in TaskStatus if status.is_terminal])
@pytest.mark.parametrize("lapsed", [False, True])
def test_an_ended_task_is_never_claimed(
    records: TaskRecord, other: TaskRecord, task_id: str, end: TaskStatus, lapsed: bool
) -> None:
    """A claim of an ended task returns its status and outcome."""
    outcome = {"step": 3, "nested": {"text": "\u00e4"}}
    assert records.finish(take(records, task_id), end, outcome, {"step": 3})
    if lapsed:
        lapse(records.redis, records.keys, task_id)
    assert ask(other, task_id) == Ended(end.value, outcome)


def test_a_task_cancelled_while_waiting_is_ended(
    records: TaskRecord, client: GenerationClient, task_id: str
) -> None:
    """A claim of a task that was cancelled while queued returns that end."""
    client.handle(task_id).cancel()
    assert ask(records, task_id) == Ended("cancelled", {"step": 0})


#: What makes a claim end the task at once, by the answer that it gets.
REFUSALS: dict[str, tuple[Callable[[Redis, Keys, GenerationClient], Any], dict[str, Any]]] = {
    "cancelled": (lambda _, __, client: client.handle("task").cancel(), {}),
    "expired": (
        lambda redis, keys, _: submitted_long_ago(redis, keys, "task"),
        {"deadline_s": 1000.0},
    ),
    "overdue": (
        lambda redis, keys, _: redis.hdel(keys.task("task"), "begun"),
        {"expires_at_s": 1000.0},
    ),
    "exhausted": (lambda *_: None, {"max_attempts": 1}),
}


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_claim_that_may_only_end_the_task(
    records: TaskRecord,
    other: TaskRecord,
    redis: Redis,
    client: GenerationClient,
    task_id: str,
    answer: str,
) -> None:
    """A cancelled, expired, overdue or exhausted task is claimed only to be ended.

    Such a claim is no attempt and appends no event `started`.
    """
    keys = client.keys
    take(records, task_id)
    prepare, options = REFUSALS[answer]
    prepare(redis, keys, client)
    claim = take_over(other, task_id, **options)
    assert (claim.answer, claim.attempt, claim.fence) == (answer, 1, 2)
    assert kinds(redis, keys, task_id) == ["queued", "started"]
    assert other.finish(claim, TaskStatus.FAILED, {}, {"error": {}})
    assert kinds(redis, keys, task_id) == ["queued", "started", "failed"]


@pytest.mark.parametrize("answer", ["run", *REFUSALS])
def test_a_claim_whose_answer_was_lost_is_answered_alike(
    redis: Redis,
    client: GenerationClient,
    task_id: str,
    answer: str,
    losing: Callable[..., Any],
) -> None:
    """A repeated call gives the same answer, fence and attempt, and writes nothing twice."""
    records = worker(redis, client.keys, "worker")
    take(records, task_id)
    prepare, options = REFUSALS.get(answer, (lambda *_: None, {}))
    prepare(redis, client.keys, client)
    script = losing(records, "claim")
    claim = take_over(records, task_id, **options)
    assert script.calls == 2
    assert (claim.answer, claim.fence) == (answer, 2)
    assert claim.attempt == (2 if answer == "run" else 1)
    kept = record(redis, client.keys, task_id)
    assert (kept["fence"], kept["attempt"]) == ("2", str(claim.attempt))
    assert kinds(redis, client.keys, task_id).count("started") == claim.attempt


def test_the_deadline_counts_from_submission(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """The time in the queue counts towards the deadline; a claim before it runs."""
    submitted = float(record(redis, keys, task_id)["submitted_at"])
    redis.hset(keys.task(task_id), "submitted_at", str(submitted - 50))
    assert take(records, task_id, deadline_s=1000.0).answer == "run"
    assert take_over(records, task_id, deadline_s=49.0).answer == "expired"


def test_attempts_are_bounded(records: TaskRecord, redis: Redis, keys: Keys, task_id: str) -> None:
    """After the last attempt a claim is answered `exhausted`."""
    taken = [take_over(records, task_id) for _ in range(5)]
    assert [claim.answer for claim in taken] == ["run"] * 3 + ["exhausted"] * 2
    assert [claim.fence for claim in taken] == [1, 2, 3, 4, 5]
    assert json.loads(record(redis, keys, task_id)["attempt"]) == 3


def test_a_task_that_has_started_is_not_overdue(
    records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A message's time limit is for the start; a later attempt resumes from the checkpoint."""
    claim = take(records, task_id, expires_at_s=redis.time()[0] + 60)
    assert save_checkpoint(records, claim, 7, b"state") is WriteAnswer.WRITTEN
    answer = records.requeue(claim, {"reason": "r"}, counts=False)
    assert answer is WriteAnswer.WRITTEN
    again = take(other, task_id, expires_at_s=1000.0)
    assert (again.answer, again.attempt, again.checkpoint_step) == ("run", 1, 7)


@pytest.mark.parametrize("deadline_s", [None, 5.0])
def test_the_deadline_of_a_task_without_a_record_is_stored(
    records: TaskRecord, redis: Redis, keys: Keys, deadline_s: float | None
) -> None:
    """A claim without a record stores the deadline, so that a requeued task expires too."""
    take(records, "raw", deadline_s=deadline_s)
    kept = record(redis, keys, "raw")
    assert ("deadline_at" in kept) == (deadline_s is not None)
    if deadline_s is not None:
        deadline_at_s = float(kept["submitted_at"]) + deadline_s
        # Both are written with microseconds.
        assert float(kept["deadline_at"]) == pytest.approx(deadline_at_s, rel=0, abs=3e-6)


def test_a_task_that_is_to_be_cancelled_is_not_requeued(
    records: TaskRecord, redis: Redis, client: GenerationClient, task_id: str
) -> None:
    """A requeue is refused when cancellation is requested; the owner ends the task instead."""
    claim = take(records, task_id)
    client.handle(task_id).cancel()
    answer = records.requeue(claim, {"reason": "r"}, counts=False)
    assert answer is WriteAnswer.CANCEL_REQUESTED
    assert kinds(redis, client.keys, task_id) == ["queued", "started"]
    assert records.finish(claim, TaskStatus.CANCELLED, {"step": 3}, {"step": 3})


def test_an_outcome_that_is_too_large_is_not_read(
    records: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """Producers may write any outcome: the claim fails in Redis instead of parsing it."""
    outcome = json.dumps("x" * MAX_MESSAGE_BYTES)
    redis.hset(keys.task("t"), mapping={"status": "succeeded", "outcome": outcome})
    with pytest.raises(ResponseError, match=f"an outcome of {MAX_MESSAGE_BYTES + 2} bytes"):
        ask(records, "t")
