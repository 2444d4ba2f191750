"""A Redis that is full refuses every write, which is an outage like another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from celery import Celery
from redis import Redis

from tests.service.conftest import END_S, check_events, wait_for, wait_until
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

SHORT = {"prompt": "a large red circle on a white background", "num_inference_steps": 1}
#: How long Redis is full, in seconds: time for a task to end into it, and for tries.
FULL_S = 3.0


def test_a_full_redis_loses_no_task(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """While memory is short tasks wait, none is lost, none is started twice, no slot is held."""
    with (
        embedded.redis_server(tmp_path) as url,
        Redis.from_url(url) as redis,
        start_service(url) as worker,
    ):
        assert worker.client.submit(SHORT).result(END_S).images
        long = worker.client.submit(SHORT | {"num_inference_steps": 60})
        short = [worker.client.submit(SHORT) for _ in range(4)]
        wait_for(long, "progress")
        redis.config_set("maxmemory", 1)
        time.sleep(FULL_S)
        redis.config_set("maxmemory", 0)
        for handle in (long, *short):
            assert handle.result(END_S).images
            events = list(handle.events(timeout=END_S))
            check_events(events)
            assert [event.type for event in events].count("started") == 1
        wait_until(lambda: redis.hlen("unacked") == 0)
        assert worker.process.poll() is None


def test_a_full_result_redis_holds_no_slot(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """Ends that Celery can't be told go back, and Celery is told when it can be.

    More of them than there are slots.
    """
    (folder := tmp_path / "results").mkdir()
    with (
        embedded.redis_server(tmp_path) as url,
        embedded.redis_server(folder) as results,
        Redis.from_url(url) as redis,
        Redis.from_url(results) as full,
        start_service(url, result_url=results) as worker,
    ):
        handles = [worker.client.submit(SHORT | {"num_inference_steps": 30}) for _ in range(3)]
        for handle in handles[:2]:
            wait_for(handle, "started")
        full.config_set("maxmemory", 1)
        for handle in handles[:2]:
            assert handle.result(END_S).images
        full.config_set("maxmemory", 0)
        stranger = Celery("stranger", broker=url, backend=results)
        for handle in handles:
            assert handle.result(END_S).images
            assert stranger.AsyncResult(handle.task_id).get(timeout=END_S)["images"]
        stranger.close()
        wait_until(lambda: redis.hlen("unacked") == 0)
