"""How tasks end early: cancelled, expired, drained, without storage; and Redis restarts."""

from __future__ import annotations

import signal
import sys
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from celery.exceptions import TaskRevokedError
from redis import Redis

from api_contracts import GenerationCancelled, GenerationExpired, GenerationFailed, TaskStatus
from tests.service.conftest import (
    END_S,
    ENDLESS,
    LONG,
    SHORT,
    check_events,
    wait_for,
    wait_until,
)
from worker import embedded
from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from celery import Celery

    from tests.conftest import Service

#: One worker process, without a supervisor.
WORK = [sys.executable, "-m", "worker", "work"]


def test_a_running_task_is_cancelled_at_a_step(service: Service, plain_celery: Celery) -> None:
    """Cancel stops a running task between steps; record, stream and Celery's result agree."""
    handle = service.client.submit(ENDLESS)
    wait_for(handle, "progress")
    assert handle.cancel() is TaskStatus.RUNNING
    with pytest.raises(GenerationCancelled):
        handle.result(END_S)
    events = list(handle.events(timeout=END_S))
    check_events(events)
    assert events[-1].type == "cancelled"
    assert 0 < events[-1].step < 150
    with pytest.raises(TaskRevokedError):
        plain_celery.AsyncResult(handle.task_id).get(timeout=END_S)


def test_a_cancel_does_not_change_the_next_picture(service: Service) -> None:
    """The same request gives the same bytes before and after a task that was cancelled midway."""
    request = {"prompt": "a green ring on a black background", "num_inference_steps": 3, "seed": 8}
    before = service.client.submit(request).result(END_S)
    handle = service.client.submit(ENDLESS)
    wait_for(handle, "progress")
    handle.cancel()
    after = service.client.submit(request).result(END_S)
    assert after.images[0].sha256 == before.images[0].sha256


@pytest.mark.slow
def test_a_waiting_task_is_cancelled_at_once(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A task that no worker has claimed ends with the cancel; its message has no effect later."""
    with embedded.redis_server(tmp_path) as url, start_service(url, slots="1") as service:
        running = service.client.submit(ENDLESS)
        wait_for(running, "started")
        waiting = service.client.submit(LONG)
        waiting.cancel()
        assert waiting.status() is TaskStatus.CANCELLED
        running.cancel()
        with pytest.raises(GenerationCancelled):
            running.result(END_S)
        check_events(list(waiting.events(timeout=END_S)))


def test_a_deadline_ends_a_task_before_and_during_its_run(
    service: Service, plain_celery: Celery
) -> None:
    """A waiting or running task past `deadline_s` is `expired`, and Celery raises the same."""
    running = service.client.submit(ENDLESS | {"deadline_s": 0.5})
    waiting = service.client.submit(LONG | {"deadline_s": 0.001})
    for handle in (running, waiting):
        with pytest.raises(GenerationExpired):
            handle.result(END_S)
        check_events(list(handle.events(timeout=END_S)))
        with pytest.raises(GenerationExpired):
            plain_celery.AsyncResult(handle.task_id).get(timeout=END_S)


@pytest.mark.slow
def test_a_drained_task_is_requeued_and_ends_in_the_next_worker(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A task past the drain timeout is requeued, and the next worker ends it, as attempt 1."""
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


@pytest.mark.slow
def test_sigterm_requeues_a_task_past_the_drain_timeout(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """SIGTERM requeues a task past the drain timeout, with its message, and the status is 0."""
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, WORK, drain_timeout_s="0") as worker,
    ):
        handle = worker.client.submit(ENDLESS)
        wait_for(handle, "started")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(60) == 0
        assert handle.status() is TaskStatus.QUEUED
        wait_for(handle, "requeued")
        assert worker.client.queue_depths() == {"default": 1}


@pytest.mark.slow
def test_sigterm_lets_a_short_task_end(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A task that ends within the drain timeout has its message acknowledged; nothing is left."""
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, WORK, drain_timeout_s="60") as one,
    ):
        handle = one.client.submit(SHORT | {"num_inference_steps": 5})
        wait_for(handle, "started")
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(60) == 0
        assert handle.status() is TaskStatus.SUCCEEDED
        with Redis.from_url(url) as redis:
            assert redis.hlen(UNACKED) == 0
            assert one.client.queue_depths() == {"default": 0}


@pytest.mark.slow
def test_storage_that_stays_away_fails_the_task(
    start_service: Callable[..., AbstractContextManager[Service]],
    own_redis_url: str,
    tmp_path: Path,
) -> None:
    """Without S3 for `SAG_S3_RETRY_S` a task fails as `storage_unavailable`; the worker goes on."""
    gone = f"http://127.0.0.1:{embedded.free_port()}"
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, s3_endpoint_url=gone, s3_retry_s="0.2") as worker,
    ):
        for _ in range(2):
            with pytest.raises(GenerationFailed) as failed:
                worker.client.submit(SHORT).result(END_S)
            assert failed.value.error.code == "storage_unavailable"
            assert failed.value.error.retryable


@pytest.mark.slow
def test_a_redis_restart_loses_and_doubles_no_task(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A running task starts and ends once when Redis restarts, and the worker serves on."""
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
        assert worker.client.submit(SHORT).result(END_S).images
        with Redis.from_url(url) as redis:
            wait_until(lambda: redis.hlen(UNACKED) == 0)
        assert worker.process.poll() is None


@pytest.mark.slow
def test_celerys_own_command_starts_a_worker(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """`celery -A worker.app worker` serves with the same settings."""
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--loglevel=INFO"]
    with embedded.redis_server(tmp_path) as url, start_service(url, command) as worker:
        assert worker.client.submit(SHORT).result(END_S).images
