"""What the publisher tells Celery, and which faults of others it outlives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import BackendStoreError

from api_contracts import GenerationClient, TaskStatus
from api_contracts.connection import connect
from tests.record.owners import PROGRESS, kinds, take, told, until
from worker import embedded, publisher
from worker.engine.job import Control, Stop
from worker.publisher import Publisher
from worker.status import Status

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from api_contracts.names import Keys


def step(number: int) -> dict[str, Any]:
    return {**PROGRESS, "step": number, "total_steps": 9, "metadata": {"k": "v"}}


def test_celery_is_told_at_most_once_a_second(status: Status, task_id: str) -> None:
    """A burst of steps is one `PROGRESS` state of step and total, for each task by itself."""
    calls: list[tuple[str, dict[str, int]]] = []
    made = Publisher(status, lambda name, meta: calls.append((name, meta)))
    claims = [take(status, task_id), take(status, "another")]
    for claim in claims:
        made.watch(claim, Control())
        made.post(claim, "uploading", {"images": 1})
        for number in range(1, 6):
            made.post(claim, "progress", step(number))
    for claim in claims:
        made.release(claim)
    made.close()
    assert sorted(calls) == [
        ("another", {"step": 1, "total_steps": 9}),
        (task_id, {"step": 1, "total_steps": 9}),
    ]


def test_celery_is_told_again_when_it_is_time(
    status: Status, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the pause is over the next step is told."""
    monkeypatch.setattr(publisher, "CELERY_EVERY_S", 0.0)
    steps: list[int] = []
    made = Publisher(status, lambda _, meta: steps.append(meta["step"]))
    claim = take(status, task_id)
    made.watch(claim, Control())
    for number in range(1, 4):
        made.post(claim, "progress", step(number))
    made.release(claim)
    made.close()
    assert steps == [1, 2, 3]


def test_a_lost_task_is_not_told_to_celery(status: Status, other: Status, task_id: str) -> None:
    """One whose task is another's writes nothing into Celery's state either."""
    calls: list[str] = []
    made = Publisher(status, lambda name, _: calls.append(name))
    claim = take(status, task_id)
    take(other, task_id, redelivered=True)
    made.watch(claim, Control())
    made.post(claim, "progress", step(1))
    made.release(claim)
    made.close()
    assert calls == []


@pytest.mark.parametrize("fault", [BackendStoreError("result Redis is away"), RuntimeError("x")])
def test_a_broken_result_backend_does_not_end_the_publisher(
    status: Status, redis: Redis, keys: Keys, task_id: str, fault: Exception
) -> None:
    """Celery's backend raises errors of its own; the events go on, and cancels are heard."""

    def fail(_task_id: str, _meta: dict[str, int]) -> None:
        raise fault

    made, claim = Publisher(status, fail), take(status, task_id)
    made.watch(claim, Control())
    made.post(claim, "progress", step(1))
    until(lambda: "progress" in kinds(redis, keys, task_id))
    made.post(claim, "uploading", {"images": 1})
    made.release(claim)
    made.close()
    assert kinds(redis, keys, task_id)[-1] == "uploading"


def test_one_broken_task_does_not_silence_the_others(
    status: Status, redis: Redis, keys: Keys, task_id: str
) -> None:
    """A write that Redis refuses (wrong type, no memory left) is that event's loss alone."""
    made, good, broken = Publisher(status), take(status, task_id), take(status, "broken")
    redis.set(keys.events("broken"), "no stream")
    made.watch(broken, Control())
    made.post(broken, "progress", step(1))
    made.release(broken)
    made.watch(good, Control())
    made.post(good, "progress", step(1))
    made.release(good)
    made.close()
    assert kinds(redis, keys, task_id)[-1] == "progress"


def test_redis_away_does_not_end_the_publisher(tmp_path: Path, keys: Keys) -> None:
    """After an outage progress is told again and cancels are heard again."""
    port = embedded.free_port()
    control = Control()
    with embedded.redis_server(tmp_path, port) as url:
        status = Status(connect(url), keys, "first", 1000)
        claim = take(status, "t")
        made = Publisher(status)
        made.watch(claim, control)
        made.post(claim, "progress", step(1))
        until(lambda: kinds(status.redis, keys, "t") == ["started", "progress"])
    made.post(claim, "progress", step(2))
    with embedded.redis_server(tmp_path, port) as url, GenerationClient(url, keys.namespace) as far:

        def back() -> bool:
            made.post(claim, "progress", step(3))
            return bool(told(far.redis, keys, "t")[-1].get("step") == 3)

        until(back)
        assert far.handle("t").cancel() is TaskStatus.RUNNING
        until(lambda: control.asked() is Stop.CANCELLED)
    made.close()
