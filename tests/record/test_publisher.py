"""The event publisher: which events it may skip, and how it reports a stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationClient, TaskStatus
from tests.record.owners import (
    kinds,
    take,
    take_over,
    told,
    until,
)
from tests.record.stuck_record import LOADING, UPLOADING, Stuck, step
from worker.job_control import Control, Stop
from worker.record import event_publisher
from worker.record.event_publisher import BACKLOG, EventPublisher

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


def test_progress_coalesces_when_redis_is_slow(
    stuck: Stuck, redis: Redis, keys: Keys, task_id: str, publish: Callable[..., EventPublisher]
) -> None:
    """When Redis is slow progress is skipped; the oldest that waits and the newest are written."""
    made, claim = publish(stuck), take(stuck, task_id)
    made.watch(claim, Control())
    made.post(claim, "progress", step(0))
    assert stuck.reached.wait(10)
    for number in range(1, 101):
        made.post(claim, "progress", step(number))
    stuck.go_on.set()
    made.flush(claim)
    steps = [each["step"] for each in told(redis, keys, task_id) if each["type"] == "progress"]
    assert steps == [*range(BACKLOG), 100]


@pytest.mark.parametrize(
    "posted",
    [
        ["loading"] * 12 + ["progress"] * 20,
        ["progress"] * 20 + ["uploading"],
        ["progress"] * 7 + ["loading"] + ["progress"] * 20 + ["uploading"] + ["progress"] * 2,
    ],
    ids=["loading-first", "uploading-last", "between"],
)
def test_nothing_but_progress_is_skipped(
    stuck: Stuck,
    client: GenerationClient,
    task_id: str,
    publish: Callable[..., EventPublisher],
    posted: list[str],
) -> None:
    """All events but progress are written, in order, however far the publisher falls behind."""
    made, claim = publish(stuck), take(stuck, task_id)
    made.watch(claim, Control())
    fields: dict[str, dict[str, Any]] = {
        "loading": LOADING,
        "uploading": UPLOADING,
        "progress": step(1),
    }
    made.post(claim, "uploading", UPLOADING)
    assert stuck.reached.wait(10)
    for kind in posted:
        made.post(claim, kind, fields[kind])
    stuck.go_on.set()
    made.flush(claim)
    seen = kinds(client.redis, client.keys, task_id)[3:]
    expected = [kind for kind in posted if kind != "progress"]
    assert [kind for kind in seen if kind != "progress"] == expected
    assert len(seen) <= 2 * len(expected) + BACKLOG


def test_flush_writes_what_waits(
    records: TaskRecord,
    redis: Redis,
    keys: Keys,
    task_id: str,
    publish: Callable[..., EventPublisher],
) -> None:
    """`flush` writes every event that was posted before it; later ones are ignored."""
    made, claim = publish(records), take(records, task_id)
    made.watch(claim, Control())
    for number in range(BACKLOG):
        made.post(claim, "progress", step(number))
    made.flush(claim)
    made.post(claim, "uploading", UPLOADING)
    assert kinds(redis, keys, task_id) == ["queued", "started"] + ["progress"] * BACKLOG
    assert records.finish(claim, TaskStatus.SUCCEEDED, {}, {})


def test_flush_waits_for_a_limited_time(
    stuck: Stuck,
    task_id: str,
    publish: Callable[..., EventPublisher],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`flush` waits for a limited time."""
    monkeypatch.setattr(event_publisher, "FLUSH_S", 0.1)
    made, claim = publish(stuck), take(stuck, task_id)
    made.watch(claim, Control())
    made.post(claim, "progress", step(1))
    assert stuck.reached.wait(10)
    begun_s = time.monotonic()
    made.flush(claim)
    assert 0.1 <= time.monotonic() - begun_s < 2
    stuck.go_on.set()


def test_a_cancel_comes_back_with_an_event(
    records: TaskRecord,
    client: GenerationClient,
    task_id: str,
    publish: Callable[..., EventPublisher],
) -> None:
    """The answer to an event reports a cancellation request."""
    made, claim, control = publish(records), take(records, task_id), Control()
    made.watch(claim, control)
    client.handle(task_id).cancel()
    made.post(claim, "progress", step(1))
    made.flush(claim)
    assert control.asked() is Stop.CANCELLED


def test_a_superseded_owner_is_stopped(
    records: TaskRecord, other: TaskRecord, task_id: str, publish: Callable[..., EventPublisher]
) -> None:
    """The answer to an event reports that another worker has claimed the task."""
    made, claim, control = publish(records), take(records, task_id), Control()
    made.watch(claim, control)
    take_over(other, task_id)
    made.post(claim, "progress", step(1))
    until(lambda: control.asked() is Stop.SUPERSEDED)
