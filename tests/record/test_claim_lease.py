"""Claims and leases: who is told that a task is held, when it is not, and where it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts import TaskStatus
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
    until,
    worker,
)
from worker.record.claim import Claim, Ended, Held, WriteAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


def test_a_lease_holds_off_others_as_long_as_it_lasts(
    redis: Redis, other: TaskRecord, keys: Keys, task_id: str
) -> None:
    """Every other message is told `held` until the lease has run out by Redis's clock; then not."""
    first = take(worker(redis, keys, "first", 0.4), task_id)
    ends_s = float(record(redis, keys, task_id)["lease_until"])
    # Both are written with microseconds.
    assert ends_s == pytest.approx(first.claimed_at_s + 0.4, rel=0, abs=3e-6)
    answers: list[tuple[float, Claim | Held | Ended, float]] = []

    def is_taken() -> bool:
        before_s = now_s(redis)
        answers.append((before_s, ask(other, task_id), now_s(redis)))
        return isinstance(answers[-1][1], Claim)

    until(is_taken)
    assert all(answer == Held("first") for _, answer, _ in answers[:-1])
    assert all(began_s < ends_s for began_s, _, _ in answers[:-1])
    assert answers[-1][2] >= ends_s
    assert record(redis, keys, task_id)["attempt"] == "2"


def test_the_new_owner_has_a_lease_of_its_own(
    records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A task that was taken over is held again, and the former owner is told so too."""
    take(records, task_id)
    take_over(other, task_id)
    assert ask(records, task_id) == Held("other")
    assert float(record(redis, keys, task_id)["lease_until"]) > now_s(redis)


def test_a_running_task_without_a_lease_is_nobodys(
    records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A record whose lease was never written, as by an earlier version, is claimed."""
    take(records, task_id)
    redis.hdel(keys.task(task_id), "lease_until")
    assert take(other, task_id).attempt == 2


class Interrupted:
    """A claim whose answer is lost; another takes the task before it is asked again."""

    def __init__(self, script: Callable[..., Any], meanwhile: Callable[[], object]) -> None:
        self.script, self.meanwhile, self.calls = script, meanwhile, 0

    def __call__(self, **arguments: Any) -> Any:
        """Run the script; the first time, lose its answer."""
        answer = self.script(**arguments)
        self.calls += 1
        if self.calls == 1:
            self.meanwhile()
            raise RedisConnectionError("lost")
        return answer


@pytest.mark.parametrize("end", [None, TaskStatus.CANCELLED])
def test_a_retry_that_comes_too_late_gets_nothing(  # noqa: PLR0913, PLR0917  # fixtures
    records: TaskRecord,
    other: TaskRecord,
    redis: Redis,
    keys: Keys,
    task_id: str,
    losing: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    end: TaskStatus | None,
) -> None:
    """A claim that is repeated after somebody else's is answered as any other message is."""

    def meanwhile() -> None:
        claim = take_over(other, task_id)
        if end is not None:
            assert other.finish(claim, end, {"step": 1}, {"step": 1})

    monkeypatch.setattr(records, "_claim", Interrupted(records._claim, meanwhile))
    expected = Held("other") if end is None else Ended("cancelled", {"step": 1})
    assert ask(records, task_id) == expected
    assert record(redis, keys, task_id)["owner"] == "other"


def test_a_retry_in_time_has_a_whole_lease(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that took a while to be answered is held for a lease from its answer on."""
    meanwhile = lambda: lapse(redis, keys, task_id)  # noqa: E731  # one line of the test
    monkeypatch.setattr(records, "_claim", Interrupted(records._claim, meanwhile))
    claim = take(records, task_id)
    assert (claim.fence, claim.attempt) == (1, 1)
    assert float(record(redis, keys, task_id)["lease_until"]) > now_s(redis)
    assert kinds(redis, keys, task_id) == ["queued", "started"]


def test_an_attempt_goes_on_from_the_checkpoint_of_the_one_before(
    records: TaskRecord, other: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A claim names the kept checkpoint's step, its event tells it, and the state can be read."""
    first = take(records, task_id)
    assert first.checkpoint_step == 0
    assert told(redis, keys, task_id)[-1]["resumed_from_step"] is None
    assert records.load_checkpoint(task_id) is None
    assert save_checkpoint(records, first, 5, b"\x00\xff five") is WriteAnswer.WRITTEN
    assert save_checkpoint(records, first, 10, b"\x00\xff ten") is WriteAnswer.WRITTEN
    second = take_over(other, task_id)
    assert second.checkpoint_step == 10
    assert other.load_checkpoint(task_id) == b"\x00\xff ten"
    assert told(redis, keys, task_id)[-1]["resumed_from_step"] == 10
    other.requeue(second, {"reason": "r"}, counts=True)
    assert take(records, task_id).checkpoint_step == 10


def test_a_message_that_came_too_late_is_overdue(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A message past its own time limit is overdue by Redis's clock, unless its task has begun."""
    at_s = now_s(redis)
    assert take(records, "late", expires_at_s=at_s - 1).answer == "overdue"
    assert kinds(redis, keys, "late") == []
    assert take(records, task_id, expires_at_s=at_s + 60).answer == "run"
    assert ask(records, task_id, expires_at_s=at_s - 1) == Held("first")


def test_the_queue_of_a_message_without_a_record_is_kept(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A claim without a record stores the message's queue; a record of a client keeps its own."""
    take(records, "raw", queue="generate.other")
    assert record(redis, keys, "raw")["queue"] == "generate.other"
    take(records, task_id, queue="generate.other")
    assert record(redis, keys, task_id)["queue"] == f"generate.{keys.namespace}"
    assert opened(redis, keys) == {"raw", task_id}
