"""An urgent task and a worker whose slots are all taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from api_contracts import TaskStatus
from tests.service.conftest import END_S, ENDLESS, SHORT, check_events, wait_for, wait_until
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service


@pytest.mark.slow
def test_an_urgent_task_starts_when_all_slots_are_taken(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """While two long tasks occupy both slots, a third waits and one of priority 0 is completed.

    The third starts when a slot is free.
    """
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, slots="2", reserved_slots="1") as service,
    ):
        submit = service.client.submit
        running = [submit(ENDLESS | {"priority": 5}) for _ in range(2)]
        for handle in running:
            wait_for(handle, "progress")
        third = submit(SHORT | {"priority": 5})
        urgent = submit(SHORT | {"priority": 0})
        assert urgent.result(END_S).batch > 1
        assert third.status() is TaskStatus.QUEUED
        assert all(handle.status() is TaskStatus.RUNNING for handle in running)
        running[0].cancel()
        assert third.result(END_S).images
        running[1].cancel()
        wait_until(lambda: running[1].status().is_terminal)
        for handle in (*running, third, urgent):
            check_events(list(handle.events(timeout=END_S)))
