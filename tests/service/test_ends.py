"""How tasks end before they are done: cancelled, expired, drained, out of storage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from celery.exceptions import TaskRevokedError
from redis import Redis

from api_contracts import GenerationCancelled, GenerationExpired, GenerationFailed, TaskStatus
from tests.service.conftest import END_S, check_events, wait_for, wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from celery import Celery

    from tests.conftest import Service

LONG = {"prompt": "a large red circle on a white background", "num_inference_steps": 150}
#: Still running when it is cancelled, however late this process gets its turn.
LONGER = LONG | {"num_images_per_prompt": 4}


def test_a_running_task_is_cancelled_at_a_step(service: Service, stranger: Celery) -> None:
    """Cancel ends a running task in the middle, in the record, the stream and Celery alike."""
    handle = service.client.submit(LONGER)
    wait_for(handle, "progress")
    assert handle.cancel() is TaskStatus.RUNNING
    with pytest.raises(GenerationCancelled):
        handle.result(END_S)
    events = list(handle.events(timeout=END_S))
    check_events(events)
    assert events[-1].type == "cancelled"
    assert 0 < events[-1].step < 150
    with pytest.raises(TaskRevokedError):
        stranger.AsyncResult(handle.task_id).get(timeout=END_S)


def test_the_next_picture_is_untouched_by_a_cancel(service: Service) -> None:
    """After a cancel half-way, the worker makes the picture that it made before, byte for byte."""
    request = {"prompt": "a green ring on a black background", "num_inference_steps": 3, "seed": 8}
    before = service.client.submit(request).result(END_S)
    handle = service.client.submit(LONGER)
    wait_for(handle, "progress")
    handle.cancel()
    after = service.client.submit(request).result(END_S)
    assert after.images[0].sha256 == before.images[0].sha256


def test_a_waiting_task_is_cancelled_at_once(service: Service) -> None:
    """A task that nobody has taken ends with the cancel; its message changes nothing later."""
    running = [service.client.submit(LONGER) for _ in range(3)]
    waiting = service.client.submit(LONG | {"priority": 9})
    waiting.cancel()
    assert waiting.status() is TaskStatus.CANCELLED
    for handle in running:
        handle.cancel()
        with pytest.raises(GenerationCancelled):
            handle.result(END_S)
    check_events(list(waiting.events(timeout=END_S)))


def test_a_deadline_ends_a_task_before_and_during_its_run(
    service: Service, stranger: Celery
) -> None:
    """Past `deadline_s` the task is `expired`, whether it waited or ran; Celery raises the same."""
    running = service.client.submit(LONG | {"deadline_s": 1.0})
    waiting = service.client.submit(LONG | {"deadline_s": 0.001})
    for handle in (running, waiting):
        with pytest.raises(GenerationExpired):
            handle.result(END_S)
        check_events(list(handle.events(timeout=END_S)))
        with pytest.raises(GenerationExpired):
            stranger.AsyncResult(handle.task_id).get(timeout=END_S)


def test_a_signal_gives_the_task_back_and_the_next_worker_ends_it(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """SIGTERM past the drain: `requeued`, no attempt counted; the next worker ends it once."""
    name = f"drain{uuid.uuid4().hex[:8]}"
    with embedded.redis_server(tmp_path) as url:
        with start_service(url, namespace=name, drain_timeout_s="0") as first:
            handle = first.client.submit(LONG, f"{name}-task")
            wait_for(handle, "progress")
            first.process.send_signal(signal.SIGTERM)
            assert first.process.wait(60) == 0
            assert handle.status() is TaskStatus.QUEUED
        with start_service(url, namespace=name) as second:
            handle = second.client.handle(f"{name}-task")
            events = list(handle.events(timeout=END_S))
            check_events(events)
            kinds = [event.type for event in events]
            assert (kinds.count("requeued"), kinds.count("started")) == (1, 2)
            assert events[-1].type == "succeeded"
            assert events[-1].attempt == 1


def test_a_signal_lets_a_short_task_end(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """SIGTERM within the drain: the task ends, its message is acknowledged, nothing is left."""
    with embedded.redis_server(tmp_path) as url, start_service(url, drain_timeout_s="60") as one:
        handle = one.client.submit(LONG | {"num_inference_steps": 20})
        wait_for(handle, "progress")
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(60) == 0
        assert handle.status() is TaskStatus.SUCCEEDED
        with Redis.from_url(url) as redis:
            assert redis.hlen(UNACKED) == 0
            assert one.client.queue_depths() == {"default": 0}


def test_storage_that_stays_away_fails_the_task(
    start_service: Callable[..., AbstractContextManager[Service]],
    own_redis_url: str,
    tmp_path: Path,
) -> None:
    """S3 away for longer than the budget: `storage_unavailable`, and the worker goes on."""
    gone = f"http://127.0.0.1:{embedded.free_port()}"
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, s3_endpoint_url=gone, s3_retry_s="0.5") as worker,
    ):
        for _ in range(2):
            with pytest.raises(GenerationFailed) as failed:
                worker.client.submit(LONG | {"num_inference_steps": 1}).result(END_S)
            assert failed.value.error.code == "storage_unavailable"
            assert failed.value.error.retryable


def test_a_redis_restart_loses_and_doubles_nothing(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """Redis restarted under a running task: one start, one end, and the worker serves on."""
    port = embedded.free_port()
    with ExitStack() as stack, ExitStack() as before:
        url = before.enter_context(embedded.redis_server(tmp_path, port))
        worker = stack.enter_context(start_service(url))
        handle = worker.client.submit(LONG)
        wait_for(handle, "progress")
        before.close()
        stack.enter_context(embedded.redis_server(tmp_path, port))
        assert handle.result(END_S).images
        events = list(handle.events(timeout=END_S))
        check_events(events)
        assert [event.type for event in events].count("started") == 1
        assert worker.client.submit(LONG | {"num_inference_steps": 1}).result(END_S).images
        with Redis.from_url(url) as redis:
            wait_until(lambda: redis.hlen(UNACKED) == 0)
        assert worker.process.poll() is None


def test_celerys_own_command_starts_a_worker(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """`celery -A worker.app worker` serves with the same settings."""
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--loglevel=INFO"]
    with embedded.redis_server(tmp_path) as url, start_service(url, command) as worker:
        result = worker.client.submit(LONG | {"num_inference_steps": 1}).result(END_S)
        assert result.images


def test_health_tells_a_worker_from_none(service: Service, tmp_path: Path) -> None:
    """`health` is 0 where a worker answers through the broker, and 1 where none does."""

    def status(url: str) -> int:
        environment = {**os.environ, **service.environment, "SAG_BROKER_URL": url}
        command = [sys.executable, "-m", "worker", "health"]
        return subprocess.run(command, env=environment, check=False, timeout=60).returncode

    began_s = time.monotonic()
    assert status(service.broker_url) == 0
    assert time.monotonic() - began_s < 60
    with embedded.redis_server(tmp_path) as url:
        assert status(url) == 1
