"""A Redis that is full refuses every write, which is an outage like another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Celery
from redis import Redis

from tests.service.conftest import END_S, check_events, wait_for, wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

SHORT = {"prompt": "a large red circle on a white background", "num_inference_steps": 1}


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
        wait_until(lambda: "retry_scheduled" in worker.log.read_text())
        redis.config_set("maxmemory", 0)
        for handle in (long, *short):
            assert handle.result(END_S).images
            events = list(handle.events(timeout=END_S))
            check_events(events)
            assert [event.type for event in events].count("started") == 1
        wait_until(lambda: redis.hlen(UNACKED) == 0)
        assert worker.process.poll() is None


def test_a_full_result_redis_holds_no_slot(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A success that Celery can't be told now is told later, and never becomes a failure."""
    (folder := tmp_path / "results").mkdir()
    with (
        embedded.redis_server(tmp_path) as url,
        embedded.redis_server(folder) as results,
        Redis.from_url(url) as redis,
        Redis.from_url(results) as full,
        start_service(url, result_url=results, slots="2") as worker,
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
        wait_until(lambda: redis.hlen(UNACKED) == 0)


def test_a_result_redis_that_is_full_from_the_beginning_fails_no_task(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """Neither that it began nor how it ended can be told: the task is done all the same, once.

    Also one of plain Celery, which has nothing but its message. Whoever waits hears of the end
    when there is room again, and of nothing else.
    """
    (folder := tmp_path / "results").mkdir()
    with (
        embedded.redis_server(tmp_path) as url,
        embedded.redis_server(folder) as results,
        Redis.from_url(url) as redis,
        Redis.from_url(results) as full,
        Celery("stranger", broker=url, backend=results) as stranger,
    ):
        full.config_set("maxmemory", 1)
        with start_service(url, result_url=results, slots="1", lease_s="2") as worker:
            handles = [worker.client.submit(SHORT, "ours"), worker.client.handle("raw")]
            stranger.send_task(
                "sag.generate", kwargs={"request": SHORT}, queue="generate.default", task_id="raw"
            )
            wait_until(lambda: worker.client.status_many(["raw"])["raw"] is not None)
            for handle in handles:
                assert handle.result(END_S).images
            wait_until(lambda: worker.log.read_text().count("Celery not told") > len(handles))
            assert full.dbsize() == 0
            full.config_set("maxmemory", 0)
            for handle in handles:
                assert stranger.AsyncResult(handle.task_id).get(timeout=END_S)["images"]
                events = list(handle.events(timeout=END_S))
                assert [event.type for event in events].count("started") == 1
            wait_until(lambda: redis.hlen(UNACKED) == 0)
            wait_until(lambda: redis.zcard(worker.client.keys.open) == 0)


def test_an_end_that_celery_cannot_be_told_holds_no_slot(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """Where no waiting helps, the message goes back, and other tasks have its slot meanwhile.

    As many of them as there are slots; once the obstacle is gone they end like any other.
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
