"""Writes behind the fence: only the current owner's take effect."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationClient, TaskStatus
from tests.record.owners import (
    LEASE_S,
    PROGRESS,
    TTL_S,
    append,
    kinds,
    opened,
    record,
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


def requeued(records: TaskRecord, claim: Claim, *, counts: bool = False) -> WriteAnswer:
    """The answer to a requeue."""
    return records.requeue(claim, {"reason": "r"}, counts=counts)


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


def test_numbers_have_no_gap_under_threads(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """Events that many threads append are numbered 1, 2, 3 … in the order of the stream."""
    claim = take(records, task_id)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: append(records, claim, "progress", PROGRESS), range(200)))
    assert answers == [WriteAnswer.WRITTEN] * 200
    assert [event["seq"] for event in told(redis, keys, task_id)] == list(range(1, 203))


def test_a_record_has_a_ttl_once_it_is_closed(
    records: TaskRecord, redis: Redis, client: GenerationClient, task_id: str
) -> None:
    """Record and events get a time to live only when the task is closed.

    Its message may wait longer than that; the claim must find the end.
    """
    keys = client.keys
    names = (keys.task(task_id), keys.events(task_id))

    def lives() -> list[Any]:
        return [redis.ttl(name) for name in names]

    assert lives() == [-1, -1]
    claim = take(records, task_id)
    append(records, claim, "progress", PROGRESS)
    records.requeue(claim, {"reason": "r"}, counts=False)
    assert lives() == [-1, -1]
    claim = take(records, task_id)
    client.handle(task_id).cancel()
    redis.set(keys.checkpoint(task_id), b"latents")
    assert opened(redis, keys) == {task_id}
    assert records.finish(claim, TaskStatus.CANCELLED, {"step": 1}, {"step": 1})
    assert lives() == [-1, -1]
    assert opened(redis, keys) == {task_id}
    records.close(task_id)
    assert all(0 < left <= TTL_S for left in lives())
    assert not redis.exists(keys.checkpoint(task_id))
    assert opened(redis, keys) == set()


@pytest.mark.parametrize("ends", ["while it waits", "by its worker"])
def test_a_task_that_is_open_is_not_closed(
    records: TaskRecord, redis: Redis, client: GenerationClient, task_id: str, ends: str
) -> None:
    """Closing a task that has not ended does nothing."""
    claim = take(records, task_id) if ends == "by its worker" else None
    records.close(task_id)
    assert opened(redis, client.keys) == {task_id}
    assert redis.ttl(client.keys.task(task_id)) == -1
    if claim is not None:
        assert records.finish(claim, TaskStatus.CANCELLED, {"step": 0}, {"step": 0})
    else:
        client.handle(task_id).cancel()
    records.close(task_id)
    assert opened(redis, client.keys) == set()
