"""Tasks that wait for the download of their model delay no other task, and can be stopped."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

from tests.record.busy_executor import WAIT_S, Busy
from tests.record.owners import kinds, record, take
from worker.execution import attempt
from worker.execution.outcome import TaskCancelled, TaskRequeued
from worker.job_control import Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


@pytest.fixture(scope="module", autouse=True)
def _torch_is_imported() -> None:
    """The engine imports torch with its first job; that time is not the first test's."""
    importlib.import_module("worker.engine.runner")


@pytest.fixture(autouse=True)
def _short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often whether a task must stop."""
    monkeypatch.setattr(attempt, "LOADING_EVENT_PERIOD_S", 0.05)


@pytest.fixture
def busy(records: TaskRecord, namespace: str) -> Iterator[Busy]:
    """An executor without tasks."""
    made = Busy(records, namespace)
    yield made
    made.close()


def test_the_last_attempt_waits_beside_others(
    busy: Busy, other: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """A task on its last attempt denoises alone, but does not wait for its model alone."""
    take(other, "last", max_attempts=2)
    redis.hset(keys.task("last"), "lease_until", "1.0")
    last = busy.deliver("last", "remote")
    assert busy.downloading.wait(WAIT_S)
    busy.go_on.set()
    second = busy.deliver("second").result(WAIT_S)
    assert isinstance(second, TaskRequeued)
    assert "broken" in second.reason
    assert not last.done()


def test_the_wait_is_limited_and_is_one_fault(
    records: TaskRecord, namespace: str, redis: Redis, keys: Keys
) -> None:
    """After `SAG_LOAD_TIMEOUT_S` each task of a download loses an attempt; the process goes on.

    One download that fails four tasks is one fault, not four.
    """
    busy = Busy(records, namespace, load_timeout_s=1)
    waiting = [busy.deliver(f"t{number}", "remote") for number in range(4)]
    for each in waiting:
        outcome = each.result(WAIT_S)
        assert isinstance(outcome, TaskRequeued)
        assert "SAG_LOAD_TIMEOUT_S" in outcome.reason
        assert outcome.counts
    assert busy.broken == []
    assert busy.gate.refusal is None
    assert kinds(redis, keys, "t0")[0] == "started"
    assert kinds(redis, keys, "t0")[-1] == "requeued"
    busy.close()


def test_a_task_that_waits_can_be_cancelled(busy: Busy, redis: Redis, keys: Keys) -> None:
    """A task that waits for a download can be cancelled, at step 0."""
    waiting = busy.deliver("t", "remote")
    assert busy.downloading.wait(WAIT_S)
    (task,) = busy.tasks.claimed()
    task[0].control.request(Stop.CANCELLED)
    assert waiting.result(WAIT_S) == TaskCancelled(0)
    assert record(redis, keys, "t")["status"] == "cancelled"
