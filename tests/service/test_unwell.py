"""Unwell workers: they report it, claim nothing more, and leave their tasks to others."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from api_contracts import GenerationFailed, TaskStatus
from tests.service.conftest import END_S, check_events, sag_worker, wait_until
from tests.service.test_outages import Server
from worker import embedded
from worker.broker.held_messages import UNACKED
from worker.config.models import SHIPPED_MODEL
from worker.execution.circuit_breaker import MAX_FAILURES
from worker.exit_codes import DEVICE_FAILED, STALLED

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

pytestmark = pytest.mark.slow  # each starts workers

SHORT = {"prompt": "a large red circle", "num_inference_steps": 1}
WORK = [sys.executable, "-m", "worker", "work", "--name", "w"]


def health(worker: Service) -> tuple[int, str]:
    """Exit status and output of `health`."""
    done = sag_worker(worker, "health")
    return done.returncode, done.stdout


def test_a_worker_that_can_renew_nothing_reports_it_and_claims_nothing(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """While the Redis of records is down, and the broker is not, messages stay in the queue.

    `health` has the reason. When Redis is back everything goes on.
    """
    (folder := tmp_path / "events").mkdir()
    events = Server(folder)
    with (
        embedded.redis_server(tmp_path) as url,
        Redis.from_url(url) as redis,
        start_service(url, WORK, events_url=events.start(), lease_s="2") as worker,
    ):
        assert health(worker)[0] == 0
        events.stop()
        wait_until(lambda: "leases not renewed for 3" in worker.log.read_text())
        redis.lpush("generate.default", b'{"headers": {"task": "sag.generate", "id": "t"}}')
        status, printed = health(worker)
        assert status == 1
        assert "w@" in printed
        assert "no lease could be renewed" in printed
        assert sag_worker(worker, "health", "--alive").returncode == 0
        assert redis.llen("generate.default") == 1
        events.start()
        wait_until(lambda: redis.llen("generate.default") == 0)
        status, printed = health(worker)
        assert (status, printed.split()[-1]) == (0, "well")
    events.stop()


def test_a_broken_worker_ends_and_another_does_its_tasks(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A worker in which every task fails does not empty the queue: each lost one attempt.

    Here the disk of its model has an input/output error: another worker's may be fine. It has one
    slot, so that a task that it requeued is behind the others.
    """
    name = f"broken{uuid.uuid4().hex[:8]}"
    shutil.copytree(SHIPPED_MODEL, tmp_path / "model")
    weights = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to("/proc/self/mem")  # reading its first byte is an EIO
    models = json.dumps({"default": {"path": str(tmp_path / "model"), "safety_checker": False}})
    with embedded.redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        with start_service(url, WORK, namespace=name, models=models, slots="1") as first:
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


def test_a_broken_model_fails_its_tasks_at_once(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A broken model fails its tasks after one attempt, and three in a row end the worker.

    Those that it has not failed by then are done by a worker with a good copy of the model.
    """
    name = f"missing{uuid.uuid4().hex[:8]}"
    (model := tmp_path / "model").mkdir()
    (model / "model_index.json").write_text("{}")
    models = json.dumps({"default": {"path": str(model), "safety_checker": False}})
    with embedded.redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        with start_service(url, WORK, namespace=name, models=models, slots="1") as first:
            ids = [first.client.submit(SHORT).task_id for _ in range(5)]
            assert first.process.wait(END_S) == DEVICE_FAILED
            failed, queued = ids[:MAX_FAILURES], ids[MAX_FAILURES:]
            for task_id in failed:
                events = list(first.client.handle(task_id).events(timeout=END_S))
                check_events(events)
                kinds = [event.type for event in events if event.type != "loading"]
                assert kinds == ["queued", "started", "failed"]
                with pytest.raises(GenerationFailed, match="sag-worker doctor") as error:
                    first.client.handle(task_id).result(END_S)
                assert error.value.error.code == "model_load_failed"
                assert not error.value.error.retryable
            assert set(first.client.status_many(queued).values()) == {TaskStatus.QUEUED}
            assert redis.hlen(UNACKED) == 0
            assert redis.xlen(first.client.keys.dead) == len(failed)
        with start_service(url, WORK, namespace=name) as second:
            for task_id in queued:
                assert second.client.handle(task_id).result(END_S).images


def test_a_worker_that_stalls_ends_and_reports_it(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A worker whose step does not end exits with status 75, and its task is requeued or fails.

    The supervisor releases its message at once, long before the lease expires.
    """
    options = {"step_timeout_s": "1", "max_attempts": "2", "lease_s": "600"}
    large = SHORT | {"height": 1024, "width": 1024, "metadata": {"k": "v"}}
    with (
        embedded.redis_server(tmp_path) as url,
        Redis.from_url(url) as redis,
        start_service(url, **options) as worker,
    ):
        handle = worker.client.submit(large, "large")
        events = list(handle.events(timeout=END_S))
        wait_until(lambda: redis.hlen(UNACKED) == 0)
        log = worker.log.read_text()
        assert log.count(f"status {STALLED}, it stalled") >= 1
        assert "Thread 0x" in log
        check_events(events)
        kinds = [event.type for event in events if event.type not in ("loading", "progress")]
        assert kinds == ["queued", "started", "requeued", "started", "failed"]
        assert all(event.metadata == {"k": "v"} for event in events)
        assert redis.xlen(worker.client.keys.dead) == 1
        with pytest.raises(GenerationFailed) as failed:
            handle.result(END_S)
        assert failed.value.error.code == "worker_stalled"
