"""Claiming a task: which worker gets it, and what a claim answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from api_contracts import GenerationClient, TaskStatus
from api_contracts.names import MAX_MESSAGE_BYTES
from tests.record.owners import ask, kinds, lapse, now_s, opened, record, take, take_over, told
from worker.record.claim import Ended, Held, WriteAnswer

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


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


def test_an_outcome_that_is_too_large_is_not_read(
    records: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """Producers may write any outcome: the claim fails in Redis instead of parsing it."""
    outcome = json.dumps("x" * MAX_MESSAGE_BYTES)
    redis.hset(keys.task("t"), mapping={"status": "succeeded", "outcome": outcome})
    with pytest.raises(ResponseError, match=f"an outcome of {MAX_MESSAGE_BYTES + 2} bytes"):
        ask(records, "t")
