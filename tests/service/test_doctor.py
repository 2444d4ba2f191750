"""The command `doctor` beside a worker that has served everybody."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from celery import Celery

from api_contracts.redis_io.connection import connect
from tests.service.conftest import END_S, check_events
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import pytest

    from tests.conftest import Service

SMALL = {"prompt": "x", "num_inference_steps": 2}


def doctor(service: Service) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", "doctor"], env={**os.environ, **service.environment},
        capture_output=True, text=True, check=False, timeout=END_S,
    )  # fmt: skip


def test_our_own_keys_are_nobody_elses(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever tasks, cancels and Celery leave in Redis is ours; another Celery app's is not."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, slots="1") as service,
        connect(url) as redis,
    ):
        check_events(list(service.client.submit(SMALL).events(timeout=END_S)))
        service.client.submit(SMALL | {"priority": 9, "model": "nobodys"})
        running = service.client.submit(SMALL | {"num_inference_steps": 150})
        next(event for event in running.events(timeout=END_S) if event.type == "progress")
        service.client.handle("never-seen").cancel()
        stranger = Celery("stranger", broker=url, backend=url)
        stranger.send_task("sag.generate", kwargs={"request": {"no": 1}}, queue="generate.default")
        assert stranger.control.inspect(timeout=2).ping()
        told = doctor(service)
        assert told.returncode == 0, told.stderr
        assert told.stdout == ""
        assert "its own: none of" in told.stderr
        stranger.send_task("theirs")
        redis.set("session:hunter2", "")
        told = doctor(service)
        assert told.returncode == 1
        (found, fix) = told.stderr.partition("FAIL redis broker database: ")[2].splitlines()[:2]
        assert {"celery (1)", "session:* (1)"} <= set(found.partition("such as ")[2].split(", "))
        assert "hunter2" not in told.stderr
        assert "a database of its own" in fix
        assert told.stderr.count("FAIL") == 1
        running.cancel()
