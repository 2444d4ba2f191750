"""Redis is away while tasks run: none is lost or ends twice, and a short outage costs nothing."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from redis import Redis

from tests.service.conftest import END_S, ENDLESS, LONG, SHORT, check_events, wait_for, wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED, UNACKED_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from api_contracts import TaskHandle
    from tests.conftest import Service

#: Tasks that run at once.
TASKS = 8
#: All of them together take about 8 s on one core.
REQUEST = SHORT | {"num_inference_steps": 40}


def start_tasks(worker: Service, count: int = TASKS) -> list[TaskHandle]:
    """Submit tasks, and return when all of them run."""
    handles = [worker.client.submit(REQUEST | {"seed": seed}) for seed in range(count)]
    for handle in handles:
        wait_for(handle, "started")
    wait_for(handles[0], "progress")
    return handles


def check_ends(handles: list[TaskHandle], url: str, most_starts: int) -> None:
    """Assert that each ends once, with its picture, and that no message is left."""
    for handle in handles:
        assert handle.result(END_S).images
        events = list(handle.events(timeout=END_S))
        check_events(events)
        assert 1 <= [event.type for event in events].count("started") <= most_starts
    with Redis.from_url(url) as redis:
        wait_until(lambda: not redis.exists(UNACKED, UNACKED_INDEX))
        assert redis.keys("generate.*") == []


class Server:
    """A Redis that can be stopped and started again with its data."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port, self._stack = folder, embedded.free_port(), ExitStack()
        self.url, self.process_id = "", 0

    def start(self) -> str:
        """Start it, and give its URL, which is always the same."""
        server = embedded.redis_server(self._folder, self._port)
        self.url = self._stack.enter_context(server)
        with Redis.from_url(self.url) as redis:
            info: Any = redis.info("server")
        self.process_id = int(info["process_id"])
        return self.url

    def stop(self) -> None:
        """Stop it."""
        self._stack.close()
        self._stack = ExitStack()

    def kill(self) -> None:
        """Kill it; it is not started again."""
        os.kill(self.process_id, signal.SIGKILL)


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """A server that was started."""
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.mark.slow
def test_a_restart_under_eight_tasks_costs_nothing(
    server: Server, start_service: Callable[..., AbstractContextManager[Service]]
) -> None:
    """A restart of Redis under eight tasks costs nothing: each starts once and ends once."""
    with start_service(server.url, lease_s="10", slots=str(TASKS)) as worker:
        handles = start_tasks(worker)
        server.stop()
        server.start()
        check_ends(handles, server.url, most_starts=1)
        assert worker.process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_outage_longer_than_a_lease_loses_and_doubles_nothing(
    server: Server, start_service: Callable[..., AbstractContextManager[Service]], workers: int
) -> None:
    """Every lease has expired when Redis comes back; each task still ends once.

    All tasks still run and renew their leases in time, so none is started again.
    """
    lease_s, pause = 2, threading.Event()
    with ExitStack() as stack:
        options: dict[str, str] = {"lease_s": str(lease_s), "slots": str(TASKS)}
        first = stack.enter_context(start_service(server.url, **options))
        options["namespace"] = first.client.keys.namespace
        for _ in range(workers - 1):
            stack.enter_context(start_service(server.url, **options))
        handles = start_tasks(first)
        server.stop()
        pause.wait(2.5 * lease_s)
        server.start()
        check_ends(handles, server.url, most_starts=1)


@pytest.mark.slow
def test_a_redis_that_freezes_for_longer_than_a_lease_loses_nothing(
    server: Server, start_service: Callable[..., AbstractContextManager[Service]]
) -> None:
    """Redis refuses nothing and answers nothing, then answers everything: each task ends once."""
    lease_s, pause = 2, threading.Event()
    with start_service(server.url, lease_s=str(lease_s), slots=str(TASKS)) as worker:
        handles = start_tasks(worker)
        redis = server.process_id
        os.kill(redis, signal.SIGSTOP)
        pause.wait(2.5 * lease_s)
        os.kill(redis, signal.SIGCONT)
        check_ends(handles, server.url, most_starts=2)
        assert worker.process.poll() is None
        assert sys.platform != "linux" or Path(f"/proc/{redis}").exists()


@pytest.mark.slow
def test_a_redis_that_refuses_writes_ends_no_process(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """While Redis is a replica, as after a failover, the process lives and its tasks go on."""
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
        check_ends([handle, worker.client.submit(SHORT)], url, most_starts=1)
        assert "restarting" not in worker.log.read_text()


@pytest.mark.slow
def test_a_worker_that_ends_by_an_error_has_status_1(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """Where the broker forbids every take, the process ends with status 1, not with 0."""
    with embedded.redis_server(tmp_path) as url, start_service(url, namespace="ended") as worker:
        with Redis.from_url(url) as redis:
            redis.acl_setuser("default", enabled=True, nopass=True, commands=["-rpop"])
        worker.client.submit(SHORT)  # wakes it
        wait_until(lambda: "worker cpu exited (status 1)" in worker.log.read_text())


#: With these a process has ended 5 s after SIGTERM; the rest is for a busy machine.
SHORT_EXIT = {"drain_timeout_s": "0", "exit_timeout_s": "5"}
WITHIN_S = 30.0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "work"])
@pytest.mark.parametrize("away", ["frozen", "gone"])
@pytest.mark.parametrize("tasks", [0, 3])
def test_a_worker_ends_in_time_without_redis(
    server: Server,
    start_service: Callable[..., AbstractContextManager[Service]],
    command: str,
    away: str,
    tasks: int,
) -> None:
    """A worker ends in time without Redis, idle or with tasks, under a supervisor or alone."""
    arguments = [sys.executable, "-m", "worker", command]
    with start_service(server.url, arguments, **SHORT_EXIT) as worker:
        for number in range(tasks):
            wait_for(worker.client.submit(ENDLESS | {"seed": number}), "progress")
        redis = server.process_id
        os.kill(redis, signal.SIGSTOP)
        if away == "gone":
            server.kill()
        began_s = time.monotonic()
        worker.process.terminate()
        status = worker.process.wait(END_S)
        took_s = time.monotonic() - began_s
        if away == "frozen":
            os.kill(redis, signal.SIGCONT)
        assert (status, took_s < WITHIN_S) == (0, True), took_s


@pytest.mark.slow
def test_children_of_a_killed_supervisor_end_without_redis(
    server: Server, start_service: Callable[..., AbstractContextManager[Service]]
) -> None:
    """The children of a killed supervisor end without Redis, which can't take back their tasks."""
    with start_service(server.url, **SHORT_EXIT) as worker:
        for number in range(3):
            wait_for(worker.client.submit(ENDLESS | {"seed": number}), "progress")
        (found,) = re.findall(r"worker cpu started: pid (\d+)", worker.log.read_text())
        child = psutil.Process(int(found))
        server.kill()
        worker.process.kill()
        child.wait(END_S)
        assert "exits, leases return what it held" in worker.log.read_text()
