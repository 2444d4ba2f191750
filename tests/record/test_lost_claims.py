"""Redis fails over and loses a claim: the next one gets the same fence, and still excludes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.events import TaskStatus
from api_contracts.redis_io.scripts import load
from tests.record import owners
from worker.record.claim import WriteAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.claim import Claim
    from worker.record.task_record import TaskRecord

TASK = "lost-claim"


@pytest.fixture
def both(redis: Redis, keys: Keys) -> tuple[TaskRecord, Claim, TaskRecord, Claim]:
    """A worker whose claim was lost with the primary, and the one that claimed the task after."""
    first, second = (owners.worker(redis, keys, owner) for owner in ("a:1", "b:1"))
    names = [keys.task(TASK), keys.events(TASK)]
    owners.take(first, TASK)
    first.requeue(owners.take_over(first, TASK), {"reason": "drained"}, counts=False)
    before: list[Any] = [redis.dump(name) for name in names]  # what the replica has
    lost = owners.take(first, TASK)
    for name, value in zip(names, before, strict=True):
        redis.restore(name, 0, value, replace=True)
    kept = owners.take(second, TASK)
    assert lost.fence == kept.fence
    return first, lost, second, kept


def renewed(record: TaskRecord, claim: Claim) -> WriteAnswer:
    """The answer to a renewal of the lease."""
    heartbeat = load(record.redis, "worker.record", "heartbeat")
    key = record.keys.task(claim.task_id)
    return WriteAnswer(heartbeat(task=key, token=claim.token, lease_s=30))


WRITES: dict[str, Callable[[TaskRecord, Claim], object]] = {
    "append": lambda record, claim: owners.append(record, claim, "progress", owners.PROGRESS),
    "checkpoint": lambda record, claim: owners.save_checkpoint(record, claim, 1, b"x"),
    "requeue": lambda record, claim: record.requeue(claim, {"reason": "drained"}, counts=True),
    "renewal": renewed,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_the_lost_claim_writes_nothing(
    both: tuple[TaskRecord, Claim, TaskRecord, Claim],
    write: Callable[[TaskRecord, Claim], object],
) -> None:
    """A write by the owner of a lost claim is answered `SUPERSEDED` and changes nothing."""
    first, lost, second, kept = both
    before = owners.record(first.redis, first.keys, TASK)
    assert write(first, lost) is WriteAnswer.SUPERSEDED
    assert owners.record(first.redis, first.keys, TASK) == before
    assert (first.is_current(lost), second.is_current(kept)) == (False, True)
    assert write(second, kept) is WriteAnswer.WRITTEN


@pytest.mark.parametrize("order", ["lost first", "kept first"])
def test_one_of_the_two_ends_the_task(
    both: tuple[TaskRecord, Claim, TaskRecord, Claim], order: str
) -> None:
    """The task ends once, by the claim that Redis has, whichever finishes first."""
    first, lost, second, kept = both
    pairs = [(first, lost), (second, kept)]
    for record, claim in pairs if order == "lost first" else reversed(pairs):
        fields = {"result": owners.RESULT}
        ended = record.finish(claim, TaskStatus.SUCCEEDED, owners.RESULT, fields)
        assert ended is (claim is kept)
    kinds = owners.kinds(first.redis, first.keys, TASK)
    assert [kind for kind in kinds if kind in owners.TERMINAL] == ["succeeded"]
