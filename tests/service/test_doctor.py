"""The command `doctor` beside a worker that has served several kinds of callers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import Celery

from api_contracts.redis_io.connection import connect
from tests.service.conftest import END_S, ENDLESS, SHORT, check_events, sag_worker
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.conftest import Service


@pytest.mark.slow
def test_doctor_tells_foreign_keys_from_our_own(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """`doctor` takes keys of tasks, cancels and Celery for ours, and names foreign ones."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, slots="1") as service,
        connect(url) as redis,
    ):
        check_events(list(service.client.submit(SHORT).events(timeout=END_S)))
        service.client.submit(SHORT | {"priority": 9, "model": "unserved"})
        running = service.client.submit(ENDLESS)
        next(event for event in running.events(timeout=END_S) if event.type == "progress")
        service.client.handle("never-seen").cancel()
        caller = Celery("caller", broker=url, backend=url)
        caller.send_task("sag.generate", kwargs={"request": {"no": 1}}, queue="generate.default")
        assert caller.control.inspect(timeout=1, limit=1).ping()
        done = sag_worker(service, "doctor")
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert "its own: none of" in done.stderr
        caller.send_task("theirs")
        redis.set("session:hunter2", "")
        done = sag_worker(service, "doctor")
        assert done.returncode == 1
        (found, fix) = done.stderr.partition("FAIL redis broker database: ")[2].splitlines()[:2]
        assert {"celery (1)", "session:* (1)"} <= set(found.partition("such as ")[2].split(", "))
        assert "hunter2" not in done.stderr
        assert "a database of its own" in fix
        assert done.stderr.count("FAIL") == 1
        running.cancel()
