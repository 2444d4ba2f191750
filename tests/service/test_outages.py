"""Redis away under running tasks: none is lost, none ends twice, and a short outage costs nothing.

Here a worker has eight tasks at work at once, each of which Redis leaves in the middle.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from tests.service.conftest import END_S, check_events, wait_for, wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED, UNACKED_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from api_contracts import TaskHandle
    from tests.conftest import Service

NUMBER = 8
#: Without guidance of any kind: what is looked at is not the picture.
LONG = {
    "prompt": "a large red circle", "num_inference_steps": 40, "sag_scale": 0.0,
    "guidance_scale": 1.0,
}  # fmt: skip


def begin(worker: Service) -> list[TaskHandle]:
    """Eight tasks, all of them at work."""
    handles = [worker.client.submit(LONG | {"seed": seed}) for seed in range(NUMBER)]
    for handle in handles:
        wait_for(handle, "started")
    wait_for(handles[0], "progress")
    return handles


def end(handles: list[TaskHandle], url: str, most_starts: int) -> None:
    """Each ends once, with its pictures, and nothing is left of any."""
    for handle in handles:
        assert handle.result(END_S).images
        events = list(handle.events(timeout=END_S))
        check_events(events)
        assert 1 <= [event.type for event in events].count("started") <= most_starts
    with Redis.from_url(url) as redis:
        wait_until(lambda: not redis.exists(UNACKED, UNACKED_INDEX))
        assert redis.keys("generate.*") == []


class Server:
    """A Redis that goes and comes, its data kept."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port, self._stack = folder, embedded.free_port(), ExitStack()
        self.url = ""

    def come(self) -> str:
        """Start it."""
        server = embedded.redis_server(self._folder, self._port)
        self.url = self._stack.enter_context(server)
        return self.url

    def go(self) -> None:
        """End it."""
        self._stack.close()
        self._stack = ExitStack()

    def process(self) -> int:
        """Its process id."""
        with Redis.from_url(self.url) as redis:
            told: Any = redis.info("server")
        return int(told["process_id"])


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """One that is there."""
    made = Server(tmp_path)
    made.come()
    yield made
    made.go()


def test_a_restart_under_eight_tasks_costs_nothing(
    server: Server, start_service: Callable[..., AbstractContextManager[Service]]
) -> None:
    """Eight starts, eight ends, no more, though their messages were held by a lost connection."""
    with start_service(server.url, lease_s="10", slots=str(NUMBER)) as worker:
        handles = begin(worker)
        server.go()
        server.come()
        end(handles, server.url, most_starts=1)
        assert worker.process.poll() is None


@pytest.mark.parametrize("workers", [1, 2])
def test_an_outage_longer_than_a_lease_loses_and_doubles_nothing(
    server: Server, start_service: Callable[..., AbstractContextManager[Service]], workers: int
) -> None:
    """Every lease has run out when Redis comes back; each task still ends once.

    All are still at work, and have time to say so: none is started again.
    """
    lease_s, pause = 2, threading.Event()
    with ExitStack() as stack:
        options: dict[str, str] = {"lease_s": str(lease_s), "slots": str(NUMBER)}
        first = stack.enter_context(start_service(server.url, **options))
        options["namespace"] = first.client.keys.namespace
        for _ in range(workers - 1):
            stack.enter_context(start_service(server.url, **options))
        handles = begin(first)
        server.go()
        pause.wait(2.5 * lease_s)
        server.come()
        end(handles, server.url, most_starts=1)


def test_a_redis_that_freezes_for_longer_than_a_lease_loses_nothing(
    server: Server, start_service: Callable[..., AbstractContextManager[Service]]
) -> None:
    """Nothing is refused and nothing answered: then everything at once. Each task ends once."""
    lease_s, pause = 2, threading.Event()
    with start_service(server.url, lease_s=str(lease_s), slots=str(NUMBER)) as worker:
        handles = begin(worker)
        redis = server.process()
        os.kill(redis, signal.SIGSTOP)
        pause.wait(2.5 * lease_s)
        os.kill(redis, signal.SIGCONT)
        end(handles, server.url, most_starts=2)
        assert worker.process.poll() is None
        assert sys.platform != "linux" or Path(f"/proc/{redis}").exists()


def test_a_redis_that_refuses_to_write_ends_nobody(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A replica for a while, as after a failover: the process lives, and its tasks go on."""
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, namespace="refused") as worker,
        Redis.from_url(url) as redis,
    ):
        handle = worker.client.submit(LONG)
        wait_for(handle, "progress")
        redis.replicaof("127.0.0.1", "1")
        wait_until(lambda: "no message taken: Redis refuses: " in worker.log.read_text())
        redis.replicaof("NO", "ONE")
        end([handle, worker.client.submit(LONG)], url, most_starts=1)
        assert "starts again" not in worker.log.read_text()


def test_a_worker_that_an_error_ends_says_so(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """Where no message may be taken at all, the process ends with status 1, not with 0."""
    with embedded.redis_server(tmp_path) as url, start_service(url, namespace="ended") as worker:
        with Redis.from_url(url) as redis:
            redis.acl_setuser("default", commands=["-rpop"])
        wait_until(lambda: "worker cpu exited (status 1)" in worker.log.read_text())
