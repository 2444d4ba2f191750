"""Workers that are not well: they say so, take nothing more, and leave their tasks to others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from api_contracts import GenerationFailed, TaskStatus
from tests.service.conftest import END_S, check_events, wait_until
from tests.service.test_outages import Server
from worker import embedded
from worker.broker.held_messages import UNACKED
from worker.exit_codes import DEVICE_FAILED, STALLED

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

SHORT = {"prompt": "a large red circle", "num_inference_steps": 1}
WORK = [sys.executable, "-m", "worker", "work", "--name", "w"]


def health(worker: Service) -> tuple[int, str]:
    """Exit status of `health`, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "worker", "health"],
        env={**os.environ, **worker.environment},
        capture_output=True, text=True, check=False, timeout=END_S,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_worker_that_can_renew_nothing_says_so_and_takes_nothing(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """The Redis of records is away and the broker is not: messages stay, `health` tells why.

    When it is back everything goes on.
    """
    (folder := tmp_path / "events").mkdir()
    events = Server(folder)
    with (
        embedded.redis_server(tmp_path) as url,
        Redis.from_url(url) as redis,
        start_service(url, WORK, events_url=events.come(), lease_s="2") as worker,
    ):
        assert health(worker)[0] == 0
        events.go()
        wait_until(lambda: "leases not renewed for 3" in worker.log.read_text())
        redis.lpush("generate.default", b'{"headers": {"task": "sag.generate", "id": "t"}}')
        status, told = health(worker)
        assert status == 1
        assert "w@" in told
        assert "no lease could be renewed" in told
        assert redis.llen("generate.default") == 1
        events.come()
        wait_until(lambda: redis.llen("generate.default") == 0)
        status, told = health(worker)
        assert (status, told.split()[-1]) == (0, "well")
    events.go()


def test_a_broken_worker_ends_and_another_does_its_tasks(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """One that fails every task at once is not let through the queue: each lost one attempt."""
    name = f"broken{uuid.uuid4().hex[:8]}"
    (model := tmp_path / "model").mkdir()
    (model / "model_index.json").write_text("{}")
    broken = json.dumps({"default": {"path": str(model), "safety_checker": False}})
    with embedded.redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        with start_service(url, WORK, namespace=name, models=broken) as first:
            ids = [first.client.submit(SHORT).task_id for _ in range(5)]
            assert first.process.wait(END_S) == DEVICE_FAILED
            found = first.client.status_many(ids)
            assert set(found.values()) == {TaskStatus.QUEUED}
            assert redis.hlen(UNACKED) == 0
        with start_service(url, WORK, namespace=name) as second:
            for task_id in ids:
                assert second.client.handle(task_id).result(END_S).images
                events = list(second.client.handle(task_id).events(timeout=END_S))
                check_events(events)
                assert events[-1].attempt <= 2


def test_a_worker_that_stalls_ends_and_says_so(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A step beyond its time: status 75, the task goes back; with its last attempt it fails."""
    name = f"stalls{uuid.uuid4().hex[:8]}"
    options = {"namespace": name, "step_timeout_s": "1", "max_attempts": "2", "lease_s": "60"}
    large = SHORT | {"height": 1024, "width": 1024, "metadata": {"k": "v"}}
    with embedded.redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        for attempt in (1, 2):
            with start_service(url, WORK, **options) as worker:
                handle = worker.client.submit(large, "large")
                assert worker.process.wait(END_S) == STALLED
                assert "Thread 0x" in worker.log.read_text()
                assert redis.hlen(UNACKED) == 0
                if attempt == 1:
                    assert handle.status() is TaskStatus.QUEUED
        events = list(handle.events(timeout=END_S))
        check_events(events)
        kinds = [event.type for event in events if event.type not in ("loading", "progress")]
        assert kinds == ["queued", "started", "requeued", "started", "failed"]
        assert all(event.metadata == {"k": "v"} for event in events)
        assert redis.xlen(worker.client.keys.dead) == 1
        with pytest.raises(GenerationFailed) as failed:
            handle.result(END_S)
        assert failed.value.error.code == "worker_stalled"
