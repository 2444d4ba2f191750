"""Requeues: which ones use up an attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api_contracts import GenerationClient, TaskStatus
from tests.record.owners import kinds, opened, record, requeued, take, told
from worker.record.claim import WriteAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


def test_a_requeue_does_not_count(
    records: TaskRecord,
    other: TaskRecord,
    redis: Redis,
    keys: Keys,
    task_id: str,
    losing: Callable[..., Any],
) -> None:
    """A requeued task is queued as before: the attempt is not counted, the fence is."""
    first = take(records, task_id)
    script = losing(records, "requeue")
    assert requeued(records, first) is WriteAnswer.WRITTEN
    assert script.calls == 2
    kept = record(redis, keys, task_id)
    assert (kept["status"], kept["attempt"], "owner" in kept) == ("queued", "0", False)
    assert opened(redis, keys) == {task_id}
    second = take(other, task_id)
    assert (second.attempt, second.fence) == (1, first.fence + 1)
    assert kinds(redis, keys, task_id) == ["queued", "started", "requeued", "started"]
    assert not records.finish(first, TaskStatus.SUCCEEDED, {}, {})


def test_requeues_are_unbounded(records: TaskRecord, task_id: str) -> None:
    """Any number of requeues that do not count never exhausts a task."""
    for number in range(1, 8):
        claim = take(records, task_id, max_attempts=1)
        assert (claim.answer, claim.attempt, claim.fence) == ("run", 1, number)
        assert requeued(records, claim) is WriteAnswer.WRITTEN


def test_an_attempt_that_counts_stays_counted(
    records: TaskRecord, redis: Redis, task_id: str
) -> None:
    """A requeue that counts uses up one attempt, whichever worker claims next."""
    for number in (1, 2):
        claim = take(records, task_id, max_attempts=2)
        assert (claim.answer, claim.attempt) == ("run", number)
        assert requeued(records, claim, counts=True) is WriteAnswer.WRITTEN
        assert requeued(records, claim, counts=True) is WriteAnswer.WRITTEN
        assert record(redis, records.keys, task_id)["attempt"] == str(number)
    assert take(records, task_id, max_attempts=2).answer == "exhausted"
    attempts = [event["attempt"] for event in told(redis, records.keys, task_id)]
    assert attempts == [0, 1, 1, 2, 2]


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
