"""The publisher and Celery's states, and the errors that the publisher survives."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import BackendStoreError

from api_contracts import GenerationClient, TaskStatus
from api_contracts.redis_io.connection import connect
from tests.record.owners import PROGRESS, kinds, take, take_over, told, until, worker
from worker import embedded
from worker.job_control import Control, Stop
from worker.record import event_publisher
from worker.record.celery_state import CeleryState
from worker.record.event_publisher import EventPublisher

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.celery_state import State
    from worker.record.task_record import TaskRecord


def step(number: int) -> dict[str, Any]:
    return {**PROGRESS, "step": number, "total_steps": 9, "metadata": {"k": "v"}}


def test_progress_is_mirrored_at_most_once_a_second(records: TaskRecord, task_id: str) -> None:
    """A burst of steps becomes one `PROGRESS` state per task.

    `STARTED` is written before it, unless the first step is faster.
    """
    calls: list[tuple[str, str, dict[str, int]]] = []

    def store(states: Mapping[str, State]) -> None:
        calls.extend((state, name, meta) for name, (meta, state) in states.items())

    made = EventPublisher(records, CeleryState(store))
    taken = [take(records, task_id), take(records, "another")]
    for claim in taken:
        made.watch(claim, Control())
        made.post(claim, "uploading", {"images": 1})
        for number in range(1, 6):
            made.post(claim, "progress", step(number))
    until(lambda: [call[0] for call in calls].count("PROGRESS") == 2)
    for claim in taken:
        made.flush(claim)
    made.close()
    mirrored = [(name, meta) for state, name, meta in calls if state == "PROGRESS"]
    assert sorted(name for name, _ in mirrored) == ["another", task_id]
    assert all(meta.keys() == {"step", "total_steps"} for _, meta in mirrored)


def test_the_start_is_mirrored(records: TaskRecord, task_id: str) -> None:
    """`STARTED` has the meta of Celery's own workers."""
    calls: list[Mapping[str, State]] = []
    made = EventPublisher(records, CeleryState(calls.append))
    made.watch(claim := take(records, task_id), Control())
    until(lambda: calls)
    made.flush(claim)
    made.close()
    (states,) = calls
    meta, state = states[task_id]
    assert (state, set(meta)) == ("STARTED", {"pid", "hostname"})


def test_a_result_redis_that_hangs_delays_no_event(
    records: TaskRecord, client: GenerationClient, task_id: str
) -> None:
    """While Celery's Redis hangs, events are written and their answers are read."""
    stuck, go_on = threading.Event(), threading.Event()

    def hang(_states: Mapping[str, State]) -> None:
        stuck.set()
        assert go_on.wait(30)

    made, claim, control = (
        EventPublisher(records, CeleryState(hang)),
        take(records, task_id),
        Control(),
    )
    made.watch(claim, control)
    made.post(claim, "progress", step(1))
    assert stuck.wait(10)
    made.post(claim, "progress", step(2))
    until(lambda: kinds(client.redis, client.keys, task_id).count("progress") == 2)
    client.handle(task_id).cancel()
    made.post(claim, "progress", step(3))
    until(lambda: control.asked() is Stop.CANCELLED)
    go_on.set()
    made.flush(claim)
    made.close()


def test_a_superseded_worker_mirrors_nothing(
    records: TaskRecord, other: TaskRecord, task_id: str
) -> None:
    """A superseded worker writes no progress into Celery's state."""
    calls: list[str] = []

    def store(states: Mapping[str, State]) -> None:
        calls.extend(state for _, state in states.values())

    made = EventPublisher(records, CeleryState(store))
    claim = take(records, task_id)
    take_over(other, task_id)
    made.watch(claim, Control())
    made.post(claim, "progress", step(1))
    made.flush(claim)
    made.close()
    assert "PROGRESS" not in calls


@pytest.mark.parametrize("fault", [BackendStoreError("result Redis is away"), RuntimeError("x")])
def test_a_broken_result_backend_does_not_end_the_publisher(
    records: TaskRecord, redis: Redis, keys: Keys, task_id: str, fault: Exception
) -> None:
    """Errors of Celery's backend do not stop the events."""

    def fail(_states: Mapping[str, State]) -> None:
        raise fault

    made, claim = EventPublisher(records, CeleryState(fail)), take(records, task_id)
    made.watch(claim, Control())
    made.post(claim, "progress", step(1))
    until(lambda: "progress" in kinds(redis, keys, task_id))
    made.post(claim, "uploading", {"images": 1})
    made.flush(claim)
    made.close()
    assert kinds(redis, keys, task_id)[-1] == "uploading"


def test_a_refused_write_loses_one_event(
    records: TaskRecord,
    redis: Redis,
    keys: Keys,
    task_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write that Redis refuses (wrong type) loses that event alone."""
    monkeypatch.setattr(event_publisher, "RETRY_PAUSE_S", 0.01)
    made, good = (
        EventPublisher(records, CeleryState(lambda *_: None)),
        take(records, task_id),
    )
    broken = take(records, "broken")
    redis.set(keys.events("broken"), "no stream")
    for claim in (broken, good):
        made.watch(claim, Control())
    for number in range(1, 4):
        for claim in (broken, good):
            made.post(claim, "progress", step(number))
    made.post(good, "uploading", {"images": 1})
    until(lambda: kinds(redis, keys, task_id)[-1] == "uploading")
    assert kinds(redis, keys, task_id).count("progress") == 3
    made.flush(good)
    made.close()


def test_redis_away_does_not_end_the_publisher(tmp_path: Path, keys: Keys) -> None:
    """After an outage waiting events are written, and cancellations are noticed again."""
    port = embedded.free_port()
    control = Control()
    with embedded.redis_server(tmp_path, port) as url:
        records = worker(connect(url), keys, "first")
        claim = take(records, "t")
        made = EventPublisher(records, CeleryState(lambda *_: None))
        made.watch(claim, control)
        made.post(claim, "progress", step(1))
        until(lambda: kinds(records.redis, keys, "t") == ["started", "progress"])
    made.post(claim, "uploading", {"images": 1})
    with embedded.redis_server(tmp_path, port) as url, GenerationClient(url, keys.namespace) as far:

        def back() -> bool:
            made.post(claim, "progress", step(3))
            return bool(told(far.redis, keys, "t")[-1].get("step") == 3)

        until(back)
        assert kinds(far.redis, keys, "t").count("uploading") == 1
        assert far.handle("t").cancel() is TaskStatus.RUNNING
        made.post(claim, "progress", step(4))
        until(lambda: control.asked() is Stop.CANCELLED)
    made.close()
