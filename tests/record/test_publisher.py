"""The event publisher: which events it may skip, and how it reports a stop."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationClient, TaskStatus
from api_contracts.redis_io.connection import connect
from tests.record.owners import (
    LEASE_S,
    PROGRESS,
    TTL_S,
    kinds,
    take,
    take_over,
    told,
    until,
    worker,
)
from worker import embedded
from worker.job_control import Control, Stop
from worker.record import event_publisher
from worker.record.celery_state import CeleryState
from worker.record.event_publisher import BACKLOG, EventPublisher
from worker.record.task_record import MAX_WRITE_BYTES, TaskRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.claim import NewCheckpoint, NewEvent, WriteAnswer

LOADING, UPLOADING = {"seconds_so_far": 0.1}, {"images": 1}


def step(number: int) -> dict[str, Any]:
    return {**PROGRESS, "step": number, "total_steps": 100}


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EventPublisher]]:
    """Publishers that are closed after the test, with short pauses after errors."""
    monkeypatch.setattr(event_publisher, "RETRY_PAUSE_S", 0.01)
    made: list[EventPublisher] = []

    def make(records: TaskRecord) -> EventPublisher:
        made.append(EventPublisher(records, CeleryState(lambda *_: None)))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Stuck(TaskRecord):
    """A record whose writes wait until `go_on`."""

    def stick(self) -> None:
        """Block writes from now on."""
        self.reached, self.go_on = threading.Event(), threading.Event()
        #: What each call was given.
        self.calls: list[list[NewEvent | NewCheckpoint]] = []

    def write(self, writes: Sequence[NewEvent | NewCheckpoint]) -> list[WriteAnswer | Exception]:
        """Signal that the write was reached, wait, then write."""
        self.calls.append(list(writes))
        self.reached.set()
        assert self.go_on.wait(10)
        return super().write(writes)


@pytest.fixture
def stuck(redis: Redis, keys: Keys) -> Stuck:
    """A worker's record that is stuck."""
    records = Stuck(redis, keys, "first", record_ttl_s=TTL_S, lease_s=LEASE_S)
    records.stick()
    return records


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


def test_a_superseded_owner_is_stopped(
    records: TaskRecord, other: TaskRecord, task_id: str, publish: Callable[..., EventPublisher]
) -> None:
    """The answer to an event reports that another worker has claimed the task."""
    made, claim, control = publish(records), take(records, task_id), Control()
    made.watch(claim, control)
    take_over(other, task_id)
    made.post(claim, "progress", step(1))
    until(lambda: control.asked() is Stop.SUPERSEDED)


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
