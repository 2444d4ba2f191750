"""Writes behind the fence: only the current owner's take effect."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationClient, TaskStatus
from tests.record.owners import (
    LEASE_S,
    PROGRESS,
    append,
    kinds,
    record,
    requeued,
    save_checkpoint,
    take,
    take_over,
    told,
)
from tests.record.reconcilers import hold
from worker.broker.held_messages import HeldMessages
from worker.job_control import Stop
from worker.record import task_record
from worker.record.claim import NewCheckpoint, NewEvent, WriteAnswer
from worker.record.task_record import MAX_WRITE_BYTES
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.job_control import Control
    from worker.record.claim import Claim
    from worker.record.task_record import TaskRecord


def snapshot(redis: Redis, keys: Keys, task_id: str) -> tuple[object, ...]:
    """Everything that Redis has of a task."""
    checkpoint, dead = redis.get(keys.checkpoint(task_id)), redis.xrange(keys.dead)
    scores = redis.zrange(keys.open, 0, -1, withscores=True)
    return record(redis, keys, task_id), told(redis, keys, task_id), scores, checkpoint, dead


def renewed(records: TaskRecord, claim: Claim) -> Control:
    """The control of a claim after its lease was renewed."""
    task = hold(tasks := ActiveTasks(), claim)
    Lease(
        records.redis, records.keys, tasks, HeldMessages(records.redis), list, LEASE_S, owner="o"
    ).renew()
    return task.control


@pytest.mark.parametrize("since", ["taken over", "taken over and ended", "given back", "again"])
def test_a_former_owner_writes_nothing(
    records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys, task_id: str, since: str
) -> None:
    """Every write of a former owner is refused and changes nothing.

    That is record, events, open tasks, checkpoint and dead letters.
    """
    stale = take(records, task_id)
    assert save_checkpoint(records, stale, 3, b"three") is WriteAnswer.WRITTEN
    if since == "given back":
        assert requeued(records, stale) is WriteAnswer.WRITTEN
    elif since == "again":
        assert requeued(records, stale) is WriteAnswer.WRITTEN
        take(other, task_id)
    else:
        claim = take_over(other, task_id)
        if since == "taken over and ended":
            assert other.finish(claim, TaskStatus.FAILED, {}, {"error": {}})
    before = snapshot(redis, keys, task_id)
    assert append(records, stale, "progress", PROGRESS) is WriteAnswer.SUPERSEDED
    assert save_checkpoint(records, stale, 9, b"nine") is WriteAnswer.SUPERSEDED
    assert not records.is_current(stale)
    assert renewed(records, stale).asked() is Stop.SUPERSEDED
    for end in (TaskStatus.SUCCEEDED, TaskStatus.FAILED):
        assert not records.finish(stale, end, {}, {}, dead="late")
    # Where it was given back that is what was asked for, and so True.
    for counts in (False, True):
        answer = records.requeue(stale, {"reason": "late"}, counts=counts)
        is_written = since == "given back"
        assert answer is (WriteAnswer.WRITTEN if is_written else WriteAnswer.SUPERSEDED)
    assert snapshot(redis, keys, task_id) == before


def test_a_stale_owner_on_the_same_worker_writes_nothing(records: TaskRecord, task_id: str) -> None:
    """The fence belongs to a claim: an earlier claim of the same worker is stale."""
    stale = take(records, task_id)
    current = take_over(records, task_id)
    assert append(records, stale, "progress", PROGRESS) is WriteAnswer.SUPERSEDED
    assert append(records, current, "progress", PROGRESS) is WriteAnswer.WRITTEN
    assert renewed(records, stale).asked() is Stop.SUPERSEDED
    assert renewed(records, current).asked() is None


def test_a_call_for_many_tasks_answers_for_each(
    records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys, client: GenerationClient
) -> None:
    """Each write of a call has its own fence and answer; an error ends the call."""
    names = ("cancelled", "superseded", "runs", "broken", "late")
    claims = {name: take(records, name) for name in names}
    client.handle("cancelled").cancel()
    take_over(other, "superseded")
    redis.hset(keys.task("broken"), "seq", "odd")
    writes = [NewEvent(claim, "progress", PROGRESS) for claim in claims.values()]
    checkpoint = NewCheckpoint(claims["runs"], 1, b"state")
    *answers, error = records.write([writes[0], writes[1], checkpoint, *writes[2:]])
    assert answers == [
        WriteAnswer.CANCEL_REQUESTED,
        WriteAnswer.SUPERSEDED,
        WriteAnswer.WRITTEN,
        WriteAnswer.WRITTEN,
    ]
    assert "not an integer" in str(error)
    assert records.load_checkpoint("runs") == b"state"
    assert told(redis, keys, "runs")[-1]["type"] == "progress"
    assert told(redis, keys, "superseded")[-1]["worker"] == "other"
    assert told(redis, keys, "late")[-1]["type"] == "started"


@pytest.mark.parametrize("limit", ["MAX_WRITES", "MAX_WRITE_BYTES"])
def test_a_call_is_limited(
    records: TaskRecord, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call writes a limited number and bytes, at least one write, and answers tell how many."""
    claim = take(records, "t")
    if limit == "MAX_WRITES":
        monkeypatch.setattr(task_record, limit, 2)
    sizes = {"MAX_WRITES": (1, 1, 1), "MAX_WRITE_BYTES": (MAX_WRITE_BYTES // 2,) * 3}[limit]
    writes = [NewCheckpoint(claim, 1, b"x" * size) for size in sizes]
    assert records.write(writes) == [WriteAnswer.WRITTEN] * 2
    large = [NewCheckpoint(claim, 1, b"x" * (MAX_WRITE_BYTES + 1))] * 2
    assert records.write(large) == [WriteAnswer.WRITTEN]


def test_the_end_is_written_once(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str, losing: Callable[..., Any]
) -> None:
    """An end whose answer was lost is written once; another end by the same owner is refused."""
    claim = take(records, task_id)
    script = losing(records, "finish")
    assert records.finish(claim, TaskStatus.SUCCEEDED, {"a": 1}, {"result": {}})
    assert script.calls == 2
    before = snapshot(redis, keys, task_id)
    assert records.finish(claim, TaskStatus.SUCCEEDED, {"a": 2}, {"result": {}})
    assert not records.finish(claim, TaskStatus.FAILED, {}, {"error": {}})
    assert append(records, claim, "progress", PROGRESS) is WriteAnswer.SUPERSEDED
    assert requeued(records, claim) is WriteAnswer.SUPERSEDED
    assert snapshot(redis, keys, task_id) == before
    assert kinds(redis, keys, task_id) == ["queued", "started", "succeeded"]


def test_numbers_have_no_gap_under_threads(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """Events that many threads append are numbered 1, 2, 3 … in the order of the stream."""
    claim = take(records, task_id)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: append(records, claim, "progress", PROGRESS), range(200)))
    assert answers == [WriteAnswer.WRITTEN] * 200
    assert [event["seq"] for event in told(redis, keys, task_id)] == list(range(1, 203))
