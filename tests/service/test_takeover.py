"""Workers that die or freeze in the middle of a task: another one ends it, once, within a lease."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from redis import Redis

from tests.conftest import BUCKET
from tests.record.owners import record
from tests.service.conftest import END_S, SHORT, check_events, wait_for, wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED, UNACKED_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from api_contracts import TaskHandle
    from tests.conftest import Service

pytestmark = pytest.mark.slow

LONG = SHORT | {"num_inference_steps": 40, "seed": 1}
LEASE_S = 3


def command(name: str) -> list[str]:
    """A worker process without a supervisor, which would start it again."""
    return [sys.executable, "-m", "worker", "work", "--name", name]


@dataclass(frozen=True)
class Pair:
    """Two worker processes of one service."""

    workers: tuple[Service, Service]
    redis: Redis

    @property
    def client(self) -> Any:
        """A client of both."""
        return self.workers[0].client

    def owner(self, handle: TaskHandle) -> tuple[Service, Service]:
        """The worker that runs a task, and the other."""
        owner = record(self.redis, self.client.keys, handle.task_id)["owner"]
        pid = int(owner.split(":")[1])
        first, second = self.workers
        return (first, second) if first.process.pid == pid else (second, first)

    def wait_for_messages(self) -> None:
        """Return when no message is unacknowledged and none waits."""
        wait_until(lambda: not self.redis.exists(UNACKED, UNACKED_INDEX))
        assert self.client.queue_depths() == {"default": 0}


@pytest.fixture
def pair(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> Iterator[Pair]:
    """Two workers with a short lease."""
    options = {"namespace": f"pair{uuid.uuid4().hex[:8]}", "lease_s": str(LEASE_S), "slots": "2"}
    with (
        embedded.redis_server(tmp_path) as url,
        Redis.from_url(url, protocol=2) as redis,
        start_service(url, command("a"), **options) as first,
        start_service(url, command("b"), **options) as second,
    ):
        yield Pair((first, second), redis)


def seconds_since(time_s: float, event: Any) -> float:
    """Seconds from a Unix time to an event."""
    return float(event.at.timestamp() - time_s)


def test_a_killed_workers_task_starts_again_within_its_lease(pair: Pair) -> None:
    """After `kill -9` the next attempt starts within a lease and 2 s, and the task ends once."""
    handle = pair.client.submit(LONG)
    wait_for(handle, "progress")
    owner, other = pair.owner(handle)
    killed_s = time.time()
    owner.process.kill()
    assert handle.result(END_S).images
    events = list(handle.events(timeout=END_S))
    check_events(events)
    starts = [event for event in events if event.type == "started"]
    assert [event.attempt for event in starts] == [1, 2]
    assert seconds_since(killed_s, starts[1]) <= LEASE_S + 2
    assert events[-1].attempt == 2
    assert str(other.process.pid) in str(events[-1].worker)
    pair.wait_for_messages()


def test_a_worker_that_dies_with_several_tasks_loses_none(pair: Pair) -> None:
    """The tasks that ran in the dead worker and those that waited all end, each once."""
    handles = [pair.client.submit(LONG | {"num_inference_steps": 20}) for _ in range(6)]
    wait_for(handles[0], "progress")
    owner, _ = pair.owner(handles[0])
    owner.process.kill()
    for handle in handles:
        assert handle.result(END_S).images
        events = list(handle.events(timeout=END_S))
        check_events(events)
        assert [event.type for event in events].count("started") <= 2
    pair.wait_for_messages()


def stored_objects(prefix: str, endpoint_url: str) -> dict[str, tuple[str, Any]]:
    """ETag and modification time of each object below a prefix, by key."""
    client = boto3.client("s3", endpoint_url=endpoint_url)
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {each["Key"]: (each["ETag"], each["LastModified"]) for each in found}


@pytest.mark.parametrize("end", ["succeeded", "cancelled"])
def test_a_worker_that_was_stopped_changes_nothing_when_it_continues(pair: Pair, end: str) -> None:
    """A worker is stopped for longer than its lease and continues after another ended its task.

    Record, events, files and Celery's result stay as the other worker wrote them.
    """
    handle = pair.client.submit(LONG)
    wait_for(handle, "progress")
    frozen, other = pair.owner(handle)
    os.kill(frozen.process.pid, signal.SIGSTOP)
    try:
        if end == "cancelled":
            handle.cancel()
        wait_until(lambda: handle.status() == end)
        result = f"celery-task-meta-{handle.task_id}"
        wait_until(lambda: b'"status": "PROGRESS"' not in (pair.redis.get(result) or b""))
        key = pair.client.keys.task(handle.task_id)
        wait_until(lambda: pair.redis.ttl(key) > 0)  # the record is closed
        endpoint = frozen.environment["SAG_S3_ENDPOINT_URL"]

        def written() -> tuple[Any, ...]:
            return (
                record(pair.redis, pair.client.keys, handle.task_id),
                pair.redis.xrange(pair.client.keys.events(handle.task_id)),
                stored_objects(f"{frozen.prefix}/{handle.task_id}/", endpoint),
                pair.redis.get(result),
                pair.redis.xlen(pair.client.keys.dead),
            )

        before = written()
    finally:
        os.kill(frozen.process.pid, signal.SIGCONT)
    # by its next write, or by its outcome when it hears of the cancellation first
    wait_until(lambda: "another worker has claimed" in frozen.log.read_text())
    pair.wait_for_messages()
    assert written() == before
    check_events(list(handle.events(timeout=END_S)))
    assert frozen.process.poll() is None
    assert other.process.poll() is None
