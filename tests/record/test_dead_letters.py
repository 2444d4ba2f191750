"""Dead letters: which failures become one, what they hold, how many are kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationClient, InvalidRequest, TaskStatus
from api_contracts.errors import ErrorCode, TaskError
from api_contracts.result import GenerationResult
from tests.record.box import waiting
from tests.record.owners import RESULT, ask, opened, take, take_over, worker
from worker.cli.dead_letters import DeadLetters
from worker.execution.outcome import (
    Outcome,
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    TaskSucceeded,
    dead_letter_reason,
)
from worker.record.claim import Ended

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord

DEADLY = {
    ErrorCode.ATTEMPTS_EXHAUSTED,
    ErrorCode.WORKER_STALLED,
    ErrorCode.INTERNAL,
    ErrorCode.MODEL_LOAD_FAILED,
}
OTHERS: list[Outcome] = [
    TaskSucceeded(GenerationResult.model_validate(RESULT)),
    TaskCancelled(3),
    TaskExpired(0),
    TaskDropped("another's"),
    TaskRequeued("internal: x", counts=True),
]


def failed(code: ErrorCode | str) -> TaskFailed:
    return TaskFailed(TaskError(code=code, message="why", retryable=False))


def letters(client: GenerationClient) -> list[tuple[str, int, str, str, str]]:
    return [
        (each.task_id, each.attempt, each.worker, each.reason, each.request)
        for each in DeadLetters(client)
    ]


@pytest.mark.parametrize("code", ErrorCode)
def test_what_no_worker_could_finish_is_dead(code: ErrorCode) -> None:
    """A failure caused by the workers becomes a dead letter, a refused request does not."""
    assert dead_letter_reason(failed(code)) == (f"{code}: why" if code in DEADLY else "")


@pytest.mark.parametrize("outcome", [*OTHERS, failed("of_a_later_version")])
def test_other_ends_make_no_dead_letter(outcome: Outcome) -> None:
    """Success, cancellation, a requeue and unknown error codes make no dead letter."""
    assert dead_letter_reason(outcome) == ""


def test_a_letter_has_request_and_reason(
    client: GenerationClient, records: TaskRecord, other: TaskRecord, keys: Keys, task_id: str
) -> None:
    """A dead letter has request, attempts, last worker and reason, and is written once."""
    take(records, task_id)
    claim = take_over(other, task_id)
    for _ in range(2):
        assert other.finish(claim, TaskStatus.FAILED, {}, {"error": {}}, "internal: why")
    request = json.dumps({"model": keys.namespace, "prompt": "x"}, separators=(",", ":"))
    assert letters(client) == [(task_id, 2, "other", "internal: why", request)]
    other.finish(take(other, "alive"), TaskStatus.FAILED, {}, {"error": {}})
    assert len(letters(client)) == 1


def test_a_superseded_worker_writes_no_letter(
    client: GenerationClient, records: TaskRecord, other: TaskRecord, task_id: str
) -> None:
    """A worker that was superseded writes no dead letter."""
    stale = take(records, task_id)
    take_over(other, task_id)
    assert not records.finish(stale, TaskStatus.FAILED, {}, {"error": {}}, "internal: late")
    assert letters(client) == []


def test_the_number_of_letters_is_bounded(
    client: GenerationClient, records: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """About the newest ten thousand dead letters are kept."""
    pipeline = redis.pipeline(transaction=False)
    for number in range(11_000):
        pipeline.xadd(keys.dead, {"task_id": f"old{number}"})
    pipeline.execute()
    claim = take(records, task_id)
    assert records.finish(claim, TaskStatus.FAILED, {}, {"error": {}}, "internal: why")
    assert 10_000 <= int(redis.xlen(keys.dead)) < 10_200
    newest: Any = redis.xrevrange(keys.dead, count=1)
    assert newest[0][1][b"task_id"] == task_id.encode()


def test_a_letter_can_be_replayed(
    client: GenerationClient, records: TaskRecord, keys: Keys, task_id: str
) -> None:
    """A replay makes a task of its own with the same request, once; the old task stays ended."""
    records.finish(take(records, task_id), TaskStatus.FAILED, {}, {"error": {}}, "internal: why")
    dead = DeadLetters(client)
    assert dead.replay("nobody") is None
    new_id = dead.replay(task_id)
    assert new_id == f"{task_id}.replay"
    assert dead.replay(task_id) is None
    assert letters(client) == []
    assert client.handle(new_id).status() is TaskStatus.QUEUED
    assert isinstance(ask(worker(client.redis, keys, "other"), task_id), Ended)


@pytest.mark.parametrize("request_", ['{"prompt": "' + "x" * 5000, ""])
def test_a_letter_with_a_truncated_request_is_not_replayed(
    client: GenerationClient, redis: Redis, keys: Keys, request_: str
) -> None:
    """A truncated request is not replayed: an error names it and the letter stays."""
    redis.xadd(keys.dead, {"task_id": "cut", "request": request_[:4000], "reason": "r"})
    with pytest.raises(InvalidRequest, match="request"):
        DeadLetters(client).replay("cut")
    assert len(letters(client)) == 1


def test_a_long_id_is_replayed_once(client: GenerationClient, redis: Redis) -> None:
    """Two replays of one long id make one task, whose id is derived from it."""
    long, request = "x" * 128, json.dumps({"prompt": "x", "model": client.keys.namespace})
    ids = []
    for _ in range(2):
        redis.xadd(client.keys.dead, {"task_id": long, "request": request, "reason": "r"})
        ids.append(DeadLetters(client).replay(long))
    assert ids[0] == ids[1]
    assert len(waiting(redis, client.keys.namespace)) == 2  # the second is a duplicate
    assert opened(redis, client.keys) == {ids[0]}
