"""Workers that die or freeze in the middle of a task: another ends it, once, and soon."""

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
from tests.service.conftest import END_S, check_events, wait_for, wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED, UNACKED_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from api_contracts import TaskHandle
    from tests.conftest import Service

#: Without guidance of any kind: what is looked at is not the picture.
LONG = {
    "prompt": "a large red circle", "num_inference_steps": 40, "seed": 1, "sag_scale": 0.0,
    "guidance_scale": 1.0,
}  # fmt: skip
LEASE_S = 3


def command(name: str) -> list[str]:
    """A plain worker process, that nobody starts again."""
    return [sys.executable, "-m", "worker", "work", "--name", name]


@dataclass(frozen=True)
class Pair:
    """Two worker processes of one service."""

    workers: tuple[Service, Service]
    redis: Redis

    @property
    def client(self) -> Any:
        """A way in."""
        return self.workers[0].client

    def owner(self, handle: TaskHandle) -> tuple[Service, Service]:
        """The worker that runs a task, and the other."""
        kept = record(self.redis, self.client.keys, handle.task_id)["owner"]
        pid = int(kept.split(":")[1])
        first, second = self.workers
        return (first, second) if first.process.pid == pid else (second, first)

    def settle(self) -> None:
        """Return when no message is held and none waits."""
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


def since(moment_s: float, event: Any) -> float:
    """Seconds from a moment on the clock of the wall to an event."""
    return float(event.at.timestamp() - moment_s)


def test_a_killed_workers_task_starts_again_within_its_lease(pair: Pair) -> None:
    """`kill -9` in the middle: the next attempt starts within a lease and 2 s, and it ends once."""
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
    assert since(killed_s, starts[1]) <= LEASE_S + 2
    assert events[-1].attempt == 2
    assert str(other.process.pid) in str(events[-1].worker)
    pair.settle()


def test_a_worker_that_dies_with_many_loses_none(pair: Pair) -> None:
    """Those that ran in the dead one and those that waited all end, each once."""
    handles = [pair.client.submit(LONG | {"num_inference_steps": 20}) for _ in range(6)]
    wait_for(handles[0], "progress")
    owner, _ = pair.owner(handles[0])
    owner.process.kill()
    for handle in handles:
        assert handle.result(END_S).images
        events = list(handle.events(timeout=END_S))
        check_events(events)
        assert [event.type for event in events].count("started") <= 2
    pair.settle()


def stored(prefix: str, endpoint_url: str) -> dict[str, tuple[str, Any]]:
    """ETag and time of change of each object below a prefix."""
    client = boto3.client("s3", endpoint_url=endpoint_url)
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {each["Key"]: (each["ETag"], each["LastModified"]) for each in found}


@pytest.mark.parametrize("end", ["succeeded", "cancelled"])
def test_a_frozen_worker_changes_nothing_when_it_thaws(pair: Pair, end: str) -> None:
    """Stopped for longer than its lease, overtaken, and let go: every trace of the end stays.

    Record, events, files and Celery's result are as the other worker left them.
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
        wait_until(lambda: pair.redis.ttl(key) > 0)  # nothing is left to be told
        endpoint = frozen.environment["SAG_S3_ENDPOINT_URL"]

        def traces() -> tuple[Any, ...]:
            return (
                record(pair.redis, pair.client.keys, handle.task_id),
                pair.redis.xrange(pair.client.keys.events(handle.task_id)),
                stored(f"{frozen.prefix}/{handle.task_id}/", endpoint),
                pair.redis.get(result),
                pair.redis.xlen(pair.client.keys.dead),
            )

        before = traces()
    finally:
        os.kill(frozen.process.pid, signal.SIGCONT)
    wait_until(lambda: "another worker has claimed it" in frozen.log.read_text())
    pair.settle()
    assert traces() == before
    check_events(list(handle.events(timeout=END_S)))
    assert frozen.process.poll() is None
    assert other.process.poll() is None
