"""A Redis whose memory is full refuses every write: an outage like any other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from redis import Redis

from tests.service.conftest import END_S, SHORT, check_events, wait_for, wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service


@pytest.mark.slow
def test_a_full_redis_loses_no_task(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """While memory is full tasks wait; none is lost, none starts twice, no slot stays taken."""
    with (
        embedded.redis_server(tmp_path) as url,
        Redis.from_url(url) as redis,
        start_service(url) as worker,
    ):
        assert worker.client.submit(SHORT).result(END_S).images
        long = worker.client.submit(SHORT | {"num_inference_steps": 40})
        short = [worker.client.submit(SHORT) for _ in range(4)]
        wait_for(long, "progress")
        redis.config_set("maxmemory", 1)
        wait_until(lambda: "retry_scheduled" in worker.log.read_text())
        redis.config_set("maxmemory", 0)
        for handle in (long, *short):
            assert handle.result(END_S).images
            events = list(handle.events(timeout=END_S))
            check_events(events)
            assert [event.type for event in events].count("started") == 1
        wait_until(lambda: redis.hlen(UNACKED) == 0)
        assert worker.process.poll() is None


@pytest.mark.slow
def test_a_full_result_redis_keeps_no_slot(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A success that Celery's backend refuses is written later, and never becomes a failure."""
    (folder := tmp_path / "results").mkdir()
    with (
        embedded.redis_server(tmp_path) as url,
        embedded.redis_server(folder) as results,
        Redis.from_url(url) as redis,
        Redis.from_url(results) as full,
        start_service(url, result_url=results, slots="2") as worker,
    ):
        handles = [worker.client.submit(SHORT | {"num_inference_steps": 15}) for _ in range(3)]
        for handle in handles[:2]:
            wait_for(handle, "started")
        full.config_set("maxmemory", 1)
        for handle in handles[:2]:
            assert handle.result(END_S).images
        full.config_set("maxmemory", 0)
        caller = Celery("caller", broker=url, backend=results)
        for handle in handles:
            assert handle.result(END_S).images
            assert caller.AsyncResult(handle.task_id).get(timeout=END_S)["images"]
        caller.close()
        wait_until(lambda: redis.hlen(UNACKED) == 0)


@pytest.mark.slow
def test_a_result_redis_that_is_full_from_the_beginning_fails_no_task(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A result Redis that is full from the beginning fails no task; each is done once.

    The same for a task that was sent by plain Celery. Its caller gets the result once there is
    room again, and no other state before.
    """
    (folder := tmp_path / "results").mkdir()
    with (
        embedded.redis_server(tmp_path) as url,
        embedded.redis_server(folder) as results,
        Redis.from_url(url) as redis,
        Redis.from_url(results) as full,
        Celery("caller", broker=url, backend=results) as caller,
    ):
        full.config_set("maxmemory", 1)
        with start_service(url, result_url=results, slots="1", lease_s="2") as worker:
            handles = [worker.client.submit(SHORT, "ours"), worker.client.handle("raw")]
            caller.send_task(
                "sag.generate", kwargs={"request": SHORT}, queue="generate.default", task_id="raw"
            )
            wait_until(lambda: worker.client.status_many(["raw"])["raw"] is not None)
            for handle in handles:
                assert handle.result(END_S).images
            refused = r"Celery's (state|result) not written"
            wait_until(lambda: len(re.findall(refused, worker.log.read_text())) > len(handles))
            assert full.dbsize() == 0
            full.config_set("maxmemory", 0)
            for handle in handles:
                assert caller.AsyncResult(handle.task_id).get(timeout=END_S)["images"]
                events = list(handle.events(timeout=END_S))
                assert [event.type for event in events].count("started") == 1
            wait_until(lambda: redis.hlen(UNACKED) == 0)
            wait_until(lambda: redis.zcard(worker.client.keys.open) == 0)


@pytest.mark.slow
def test_a_result_that_cannot_be_written_keeps_no_slot(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A task whose result can't be written keeps no slot, and ends once the obstacle is gone.

    There are as many such tasks as slots; once the obstacle is gone they end like any other.
    """
    names = ["blocked-1", "blocked-2"]
    with (
        embedded.redis_server(tmp_path) as url,
        Redis.from_url(url) as redis,
        start_service(url, slots="2") as worker,
    ):
        for name in names:
            redis.rpush(f"celery-task-meta-{name}", "a list, where Celery wants a string")
            worker.client.submit(SHORT, name)
        assert worker.client.submit(SHORT).result(END_S).images
        redis.delete(*(f"celery-task-meta-{name}" for name in names))
        for name in names:
            assert worker.client.handle(name).result(END_S).images
        wait_until(lambda: redis.hlen(UNACKED) == 0)
