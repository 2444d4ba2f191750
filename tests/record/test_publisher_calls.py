"""The event publisher: what one call writes, for which tasks, and what happens where it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api_contracts.redis_io.connection import connect
from tests.record.owners import (
    kinds,
    take,
    take_over,
    told,
    until,
    worker,
)
from tests.record.stuck_record import LOADING, UPLOADING, Stuck, step
from worker import embedded
from worker.job_control import Control, Stop
from worker.record import event_publisher
from worker.record.event_publisher import BACKLOG, EventPublisher
from worker.record.task_record import MAX_WRITE_BYTES, TaskRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.names import Keys


def test_tasks_take_turns(stuck: Stuck, publish: Callable[..., EventPublisher]) -> None:
    """A task with many events delays another by one event at most."""
    made, loud, quiet = publish(stuck), take(stuck, "loud"), take(stuck, "quiet")
    for claim in (loud, quiet):
        made.watch(claim, Control())
    made.post(loud, "loading", LOADING)
    assert stuck.reached.wait(10)
    for _ in range(50):
        made.post(loud, "loading", LOADING)
    made.post(quiet, "uploading", UPLOADING)
    stuck.go_on.set()
    made.flush(quiet)
    made.flush(loud)
    assert [each.claim.task_id for each in stuck.calls[1]].index("quiet") <= 1


def test_a_round_is_written_in_one_call(
    stuck: Stuck,
    redis: Redis,
    keys: Keys,
    publish: Callable[..., EventPublisher],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps and checkpoints posted in a row are one call; `flush` does not wait for more."""
    monkeypatch.setattr(event_publisher, "LINGER_S", 60.0)
    stuck.go_on.set()
    made, claims = publish(stuck), [take(stuck, f"t{number}") for number in range(16)]
    for claim in claims:
        made.watch(claim, Control())
    made.post(claims[0], "progress", step(1))
    assert not stuck.reached.wait(0.2)
    for claim in claims[1:-1]:
        made.post(claim, "progress", step(1))
    made.save_checkpoint(claims[0], 1, b"state")
    made.flush(claims[0])
    (call,) = stuck.calls
    assert [each.claim for each in call] == [*claims[:-1], claims[0]]
    for claim in claims[:-1]:
        assert kinds(redis, keys, claim.task_id) == ["started", "progress"]
    assert stuck.load_checkpoint("t0") == b"state"


def test_the_only_task_waits_for_no_other(
    records: TaskRecord,
    redis: Redis,
    keys: Keys,
    task_id: str,
    publish: Callable[..., EventPublisher],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When every task has an event there is nothing to wait for."""
    monkeypatch.setattr(event_publisher, "LINGER_S", 60.0)
    made, claim = publish(records), take(records, task_id)
    made.watch(claim, Control())
    made.post(claim, "progress", step(1))
    until(lambda: kinds(redis, keys, task_id)[-1] == "progress")


def test_an_answer_stops_its_own_task(
    stuck: Stuck,
    other: TaskRecord,
    client: GenerationClient,
    publish: Callable[..., EventPublisher],
) -> None:
    """Of the tasks of one call, each is stopped for the reason that it has, or not at all."""
    claims = [take(stuck, each) for each in ("cancelled", "runs", "superseded")]
    controls = [Control() for _ in claims]
    made = publish(stuck)
    for claim, control in zip(claims, controls, strict=True):
        made.watch(claim, control)
    client.handle("cancelled").cancel()
    take_over(other, "superseded")
    made.post(claims[1], "loading", LOADING)
    assert stuck.reached.wait(10)
    for claim in claims:
        made.post(claim, "progress", step(1))
    stuck.go_on.set()
    for claim in claims:
        made.flush(claim)
    assert len(stuck.calls) == 2
    assert [each.asked() for each in controls] == [Stop.CANCELLED, None, Stop.SUPERSEDED]


def test_an_event_that_cannot_be_written_delays_no_other_task(
    records: TaskRecord, redis: Redis, keys: Keys, publish: Callable[..., EventPublisher]
) -> None:
    """Anyone who may write to a record can break it: its events are dropped, without a pause."""
    made, bad, good = publish(records), take(records, "bad"), take(records, "good")
    for claim in (bad, good):
        made.watch(claim, Control())
    redis.hset(keys.task("bad"), "seq", "not a number")
    for number in range(BACKLOG):
        made.post(bad, "uploading", UPLOADING)
        made.post(good, "progress", step(number))
    made.flush(good)
    assert kinds(redis, keys, "good").count("progress") == BACKLOG


def test_a_refused_event_is_dropped_alone(
    records: TaskRecord, redis: Redis, keys: Keys, publish: Callable[..., EventPublisher]
) -> None:
    """Of one call, every event but that of the broken record is written, in order."""
    claims = [take(records, each) for each in ("before", "broken", "after")]
    made = publish(records)
    for claim in claims:
        made.watch(claim, Control())
    redis.set(keys.events("broken"), "no stream")
    for number in range(3):
        for claim in claims:
            made.post(claim, "progress", step(number))
    for claim in claims:
        made.flush(claim)
    for name in ("before", "after"):
        events = told(redis, keys, name)
        assert [each.get("step") for each in events] == [None, 0, 1, 2]


def test_what_redis_refuses_for_a_while_is_written_later(
    tmp_path: Path,
    keys: Keys,
    publish: Callable[..., EventPublisher],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While Redis is out of memory events wait, those of all tasks, and keep their order."""
    monkeypatch.setattr(event_publisher, "FLUSH_S", 30.0)
    with embedded.redis_server(tmp_path) as url:
        records = worker(connect(url), keys, "first")
        claims = [take(records, each) for each in ("one", "two")]
        made = publish(records)
        for claim in claims:
            made.watch(claim, Control())
        records.redis.config_set("maxmemory", 1)
        for number in range(3):
            for claim in claims:
                made.post(claim, "progress", step(number))
        until(lambda: "events not written" in caplog.text)
        records.redis.config_set("maxmemory", 0)
        for claim in claims:
            made.flush(claim)
            events = told(records.redis, keys, claim.task_id)
            assert [each.get("step") for each in events] == [None, 0, 1, 2]


def test_large_previews_are_written_in_several_calls(
    stuck: Stuck, redis: Redis, keys: Keys, publish: Callable[..., EventPublisher]
) -> None:
    """A call has at most `MAX_WRITE_BYTES`; tasks take turns, nothing is lost, the order stays."""
    large = "x" * (MAX_WRITE_BYTES // 3)
    made, claims = publish(stuck), [take(stuck, f"t{number}") for number in range(4)]
    for claim in claims:
        made.watch(claim, Control())
    made.post(claims[0], "uploading", UPLOADING)
    assert stuck.reached.wait(10)
    for number in range(3):
        for claim in claims:
            made.post(claim, "progress", step(number) | {"preview": large})
    stuck.go_on.set()
    for claim in claims:
        made.flush(claim)
    written = [[each.claim.task_id for each in call[:2]] for call in stuck.calls[1:]]
    assert written == [["t1", "t2"], ["t3", "t0"]] * 3
    for claim in claims:
        events = [each for each in told(redis, keys, claim.task_id) if each["type"] == "progress"]
        assert [each["step"] for each in events] == [0, 1, 2]
