"""Celery's remote control and Flower beside a worker: they show it, and take nothing from it."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from celery import Celery

from api_contracts import TaskStatus
from tests.service.conftest import END_S, ENDLESS, SHORT, wait_for
from worker import embedded
from worker.broker.remote_control import REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

pytestmark = pytest.mark.slow  # each uses a worker

#: Time for a worker to answer, in seconds.
ANSWER_S = 5.0
#: Arguments of Celery's own functions for the commands that are refused.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "rate_limit": {"task_name": "sag.generate", "rate_limit": "1/h"},
    "time_limit": {"task_name": "sag.generate", "hard": 1, "soft": 1},
    "revoke_by_stamped_headers": {"headers": {"a": ["b"]}},
    "pool_grow": {"n": 1},
    "pool_shrink": {"n": 16},
    "pool_restart": {"modules": None, "reload": False},
    "autoscale": {"max": 1, "min": 1},
    "add_consumer": {"queue": "celery"},
    "cancel_consumer": {"queue": "generate.default"},
}


@pytest.fixture
def operator(service: Service) -> Iterator[Celery]:
    """A Celery application that imports nothing of this project."""
    app = Celery("operator", broker=service.broker_url, set_as_current=False)
    yield app
    app.close()


def test_no_command_stops_the_tasks(service: Service, operator: Celery) -> None:
    """No command of Celery's stops the tasks: each is answered with what to do instead."""
    assert set(ARGUMENTS) == set(REFUSED)
    for name, arguments in ARGUMENTS.items():
        (answer,) = operator.control.broadcast(
            name, arguments=arguments, reply=True, timeout=ANSWER_S, limit=1
        )
        assert list(answer.values()) == [{"error": f"{name} is not served: {REFUSED[name]}"}]
    handles = [service.client.submit(SHORT) for _ in range(3)]
    assert all(handle.result(END_S).images for handle in handles)
    assert operator.control.inspect(timeout=ANSWER_S, limit=1).active_queues() is not None


def test_shutdown_requeues_what_is_unfinished_after_the_drain(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """`shutdown` requeues what is unfinished after the drain and ends with 0, as SIGTERM does."""
    command = [sys.executable, "-m", "worker", "work"]
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, command, drain_timeout_s="1") as worker,
        Celery("operator", broker=url, set_as_current=False) as app,
    ):
        handle = worker.client.submit(ENDLESS)
        wait_for(handle, "started")
        app.control.shutdown()
        assert worker.process.wait(60) == 0
        assert "draining: unfinished tasks are requeued in 1 s" in worker.log.read_text()
        assert handle.status() is TaskStatus.QUEUED
        wait_for(handle, "requeued")
        assert worker.client.queue_depths() == {"default": 1}


def test_what_is_asked_is_answered(operator: Celery) -> None:
    """Every command of `inspect` that Flower sends has an answer, `stats` among them."""
    asked = operator.control.inspect(timeout=ANSWER_S, limit=1)
    for name in ("stats", "active_queues", "registered", "scheduled", "active", "reserved",
                 "revoked", "conf"):  # fmt: skip
        answer = asked._request(name)
        assert answer is not None, name
        ((_, found),) = answer.items()
        assert not (isinstance(found, dict) and "error" in found), (name, found)


@contextmanager
def flower_at(url: str, log: Path) -> Iterator[str]:
    """Flower over a broker; gives its own URL."""
    address = f"http://{embedded.LOOPBACK}:{(port := embedded.free_port())}"
    command = [
        sys.executable, "-m", "celery", f"--broker={url}", "flower",
        f"--address={embedded.LOOPBACK}", f"--port={port}",
    ]  # fmt: skip

    def answers() -> bool:
        try:
            return fetch(f"{address}/healthcheck") == "OK"
        except URLError:
            return False

    environment = {"FLOWER_UNAUTHENTICATED_API": "true", "PATH": os.environ["PATH"]}
    with embedded.running(command, log, answers, environment):
        yield address


def fetch(url: str) -> str:
    """The text at a URL; raises HTTPError."""
    with urlopen(url, timeout=END_S) as reply:
        return str(reply.read().decode())


def test_flower_shows_the_worker(service: Service, tmp_path: Path) -> None:
    """Flower shows the worker's page, and its API the worker's queue and statistics."""
    with flower_at(service.broker_url, tmp_path / "flower.log") as flower:
        workers = json.loads(fetch(f"{flower}/api/workers?refresh=1"))
        ((name, shown),) = workers.items()
        assert [each["name"] for each in shown["active_queues"]] == ["generate.default"]
        assert shown["stats"]["pool"]["max-concurrency"] == 16
        try:
            page = fetch(f"{flower}/worker/{name}")
        except HTTPError as error:
            pytest.fail(f"{error.code} {(tmp_path / 'flower.log').read_text()[-1000:]}")
        assert "sag.generate" in page
