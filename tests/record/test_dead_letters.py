"""The dead letters: which ends go there, what they say, and that they are not kept without end."""

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
from worker.execution import endings
from worker.execution.outcome import (
    Cancelled,
    Dropped,
    Expired,
    Failed,
    Outcome,
    Requeued,
    Succeeded,
)
from worker.record.task_record import Ended

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
    Succeeded(GenerationResult.model_validate(RESULT)),
    Cancelled(3),
    Expired(0),
    Dropped("another's"),
    Requeued("internal: x", counts=True),
]


def failed(code: ErrorCode | str) -> Failed:
    return Failed(TaskError(code=code, message="why", retryable=False))


def letters(client: GenerationClient) -> list[tuple[str, int, str, str, str]]:
    return [
        (each.task_id, each.attempt, each.worker, each.reason, each.request)
        for each in DeadLetters(client)
    ]


@pytest.mark.parametrize("code", ErrorCode)
def test_what_no_worker_could_finish_is_dead(code: ErrorCode) -> None:
    """A failure that says more of the workers than of the request; no refusal of a request."""
    assert endings.why_dead(failed(code)) == (f"{code}: why" if code in DEADLY else "")


@pytest.mark.parametrize("outcome", [*OTHERS, failed("of_a_later_version")])
def test_other_ends_are_not(outcome: Outcome) -> None:
    """What succeeded, was cancelled, goes on or is unknown here is no letter."""
    assert endings.why_dead(outcome) == ""


def test_a_letter_says_what_was_asked_for_and_why_it_failed(
    client: GenerationClient, claims: TaskRecord, other: TaskRecord, keys: Keys, task_id: str
) -> None:
    """Request, attempts, the last worker and the reason; once, also when the answer was lost."""
    take(claims, task_id)
    claim = take_over(other, task_id)
    for _ in range(2):
        assert other.finish(claim, TaskStatus.FAILED, {}, {"error": {}}, "internal: why")
    request = json.dumps({"model": keys.namespace, "prompt": "x"}, separators=(",", ":"))
    assert letters(client) == [(task_id, 2, "other", "internal: why", request)]
    other.finish(take(other, "alive"), TaskStatus.FAILED, {}, {"error": {}})
    assert len(letters(client)) == 1


def test_one_that_was_overtaken_writes_no_letter(
    client: GenerationClient, claims: TaskRecord, other: TaskRecord, task_id: str
) -> None:
    """The fence guards them as it guards the record."""
    stale = take(claims, task_id)
    take_over(other, task_id)
    assert not claims.finish(stale, TaskStatus.FAILED, {}, {"error": {}}, "internal: late")
    assert letters(client) == []


def test_letters_are_not_kept_without_end(
    client: GenerationClient, claims: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """The oldest make room: about ten thousand stay, the newest among them."""
    pipeline = redis.pipeline(transaction=False)
    for number in range(11_000):
        pipeline.xadd(keys.dead, {"task_id": f"old{number}"})
    pipeline.execute()
    claim = take(claims, task_id)
    assert claims.finish(claim, TaskStatus.FAILED, {}, {"error": {}}, "internal: why")
    assert 10_000 <= int(redis.xlen(keys.dead)) < 10_200
    newest: Any = redis.xrevrange(keys.dead, count=1)
    assert newest[0][1][b"task_id"] == task_id.encode()


def test_a_letter_can_be_sent_again(
    client: GenerationClient, claims: TaskRecord, keys: Keys, task_id: str
) -> None:
    """As a task of its own, with the request that it had, once; the old one stays ended."""
    claims.finish(take(claims, task_id), TaskStatus.FAILED, {}, {"error": {}}, "internal: why")
    dead = DeadLetters(client)
    assert dead.replay("nobody") is None
    new_id = dead.replay(task_id)
    assert new_id == f"{task_id}.replay"
    assert dead.replay(task_id) is None
    assert letters(client) == []
    assert client.handle(new_id).status() is TaskStatus.QUEUED
    assert isinstance(ask(worker(client.redis, keys, "other"), task_id), Ended)


@pytest.mark.parametrize("request_", ['{"prompt": "' + "x" * 5000, ""])
def test_a_letter_whose_request_was_cut_is_not_sent_again(
    client: GenerationClient, redis: Redis, keys: Keys, request_: str
) -> None:
    """It is refused by name, and stays to be looked at."""
    redis.xadd(keys.dead, {"task_id": "cut", "request": request_[:4000], "reason": "r"})
    with pytest.raises(InvalidRequest, match="request"):
        DeadLetters(client).replay("cut")
    assert len(letters(client)) == 1


def test_a_long_id_is_sent_again_once_too(client: GenerationClient, redis: Redis) -> None:
    """Two operators at once make one task, whose id is made of the old one."""
    long, request = "x" * 128, json.dumps({"prompt": "x", "model": client.keys.namespace})
    ids = []
    for _ in range(2):
        redis.xadd(client.keys.dead, {"task_id": long, "request": request, "reason": "r"})
        ids.append(DeadLetters(client).replay(long))
    assert ids[0] == ids[1]
    assert len(waiting(redis, client.keys.namespace)) == 2  # the second is a duplicate
    assert opened(redis, client.keys) == {ids[0]}
