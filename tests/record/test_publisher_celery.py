"""What the publisher tells Celery, and which faults of others it outlives."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import BackendStoreError

from api_contracts import GenerationClient, TaskStatus
from api_contracts.redis_io.connection import connect
from tests.record.owners import PROGRESS, kinds, take, take_over, told, until, worker
from worker import embedded
from worker.job_control import Control, Stop
from worker.record import celery_state
from worker.record.celery_state import CeleryState
from worker.record.event_publisher import EventPublisher

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


def step(number: int) -> dict[str, Any]:
    return {**PROGRESS, "step": number, "total_steps": 9, "metadata": {"k": "v"}}


def test_celery_is_told_at_most_once_a_second(claims: TaskRecord, task_id: str) -> None:
    """A burst of steps is one `PROGRESS` state of step and total, for each task by itself.

    Before it comes `STARTED`, unless the first step is faster.
    """
    calls: list[tuple[str, str, dict[str, int]]] = []
    made = EventPublisher(
        claims, CeleryState(lambda *call: calls.append((call[2], call[0], call[1])))
    )
    taken = [take(claims, task_id), take(claims, "another")]
    for claim in taken:
        made.watch(claim, Control())
        made.post(claim, "uploading", {"images": 1})
        for number in range(1, 6):
            made.post(claim, "progress", step(number))
    until(lambda: [call[0] for call in calls].count("PROGRESS") == 2)
    for claim in taken:
        made.flush(claim)
    made.close()
    assert sorted(call for call in calls if call[0] != "STARTED") == [
        ("PROGRESS", "another", {"step": 1, "total_steps": 9}),
        ("PROGRESS", task_id, {"step": 1, "total_steps": 9}),
    ]


def test_celery_is_told_that_a_task_has_begun(claims: TaskRecord, task_id: str) -> None:
    """`STARTED`, with what Celery's own worker keeps there."""
    calls: list[tuple[str, dict[str, Any], str]] = []
    made = EventPublisher(claims, CeleryState(lambda *call: calls.append(call)))
    made.watch(claim := take(claims, task_id), Control())
    until(lambda: calls)
    made.flush(claim)
    made.close()
    ((name, meta, state),) = calls
    assert (name, state, set(meta)) == (task_id, "STARTED", {"pid", "hostname"})


def test_celery_is_told_again_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the pause is over the next step is told."""
    monkeypatch.setattr(celery_state, "MIN_INTERVAL_S", 0.0)
    steps: list[int] = []
    made = CeleryState(lambda _, meta, _state: steps.append(meta["step"]))
    for number in range(1, 4):
        made.post_progress("t", {"step": number, "total_steps": 9})
        until(partial(steps.__contains__, number))
    made.close()


def test_a_result_redis_that_hangs_holds_up_nothing(
    claims: TaskRecord, client: GenerationClient, task_id: str
) -> None:
    """While Celery's Redis is away, events are told and their answers are heard."""
    stuck, go_on = threading.Event(), threading.Event()

    def hang(_task_id: str, _meta: dict[str, Any], _state: str) -> None:
        stuck.set()
        assert go_on.wait(30)

    made, claim, control = (
        EventPublisher(claims, CeleryState(hang)),
        take(claims, task_id),
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


def test_nothing_is_told_after_the_end(claims: TaskRecord, task_id: str) -> None:
    """A state that still waits when its task ends is dropped: it would overwrite the end."""
    stuck, go_on = threading.Event(), threading.Event()
    calls: list[str] = []

    def store(name: str, _meta: dict[str, Any], _state: str) -> None:
        stuck.set()
        assert go_on.wait(30)
        calls.append(name)

    state = CeleryState(store)
    state.post_progress("busy", {"step": 1, "total_steps": 2})
    assert stuck.wait(10)
    state.post_progress(task_id, {"step": 1, "total_steps": 2})
    state.discard(task_id)
    go_on.set()
    state.discard("busy")
    state.close()
    assert calls == ["busy"]


def test_a_lost_task_is_not_told_to_celery(
    claims: TaskRecord, other: TaskRecord, task_id: str
) -> None:
    """One whose task is another's writes nothing into Celery's state either."""
    calls: list[str] = []
    made = EventPublisher(claims, CeleryState(lambda *call: calls.append(call[2])))
    claim = take(claims, task_id)
    take_over(other, task_id)
    made.watch(claim, Control())
    made.post(claim, "progress", step(1))
    made.flush(claim)
    made.close()
    assert "PROGRESS" not in calls


@pytest.mark.parametrize("fault", [BackendStoreError("result Redis is away"), RuntimeError("x")])
def test_a_broken_result_backend_does_not_end_the_publisher(
    claims: TaskRecord, redis: Redis, keys: Keys, task_id: str, fault: Exception
) -> None:
    """Celery's backend raises errors of its own; the events go on, and cancels are heard."""

    def fail(_task_id: str, _meta: dict[str, Any], _state: str) -> None:
        raise fault

    made, claim = EventPublisher(claims, CeleryState(fail)), take(claims, task_id)
    made.watch(claim, Control())
    made.post(claim, "progress", step(1))
    until(lambda: "progress" in kinds(redis, keys, task_id))
    made.post(claim, "uploading", {"images": 1})
    made.flush(claim)
    made.close()
    assert kinds(redis, keys, task_id)[-1] == "uploading"


def test_one_broken_task_does_not_silence_the_others(
    claims: TaskRecord, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A write that Redis refuses (wrong type) is that event's loss alone, whoever waits beside."""
    made, good = EventPublisher(claims, CeleryState(lambda *_: None)), take(claims, task_id)
    broken = take(claims, "broken")
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
    """After an outage what was posted is told, progress goes on and cancels are heard again."""
    port = embedded.free_port()
    control = Control()
    with embedded.redis_server(tmp_path, port) as url:
        claims = worker(connect(url), keys, "first")
        claim = take(claims, "t")
        made = EventPublisher(claims, CeleryState(lambda *_: None))
        made.watch(claim, control)
        made.post(claim, "progress", step(1))
        until(lambda: kinds(claims.redis, keys, "t") == ["started", "progress"])
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
