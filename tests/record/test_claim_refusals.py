"""Claims by which a worker may only end the task, and deadlines and attempts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationClient, TaskStatus
from tests.record.owners import (
    kinds,
    record,
    save_checkpoint,
    submitted_long_ago,
    take,
    take_over,
    worker,
)
from worker.record.claim import WriteAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord

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
