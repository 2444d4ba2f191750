"""Sentinels promote a replica under ten running tasks: none is lost, doubled or made otherwise."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests import sentinels
from tests.hostile.guarded import SYSTEM_REDIS, wheel_redis
from tests.service.conftest import END_S, SHORT, check_events, wait_for, wait_until
from worker.broker.held_messages import UNACKED, UNACKED_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from api_contracts import TaskHandle
    from tests.conftest import Service

pytestmark = pytest.mark.slow

#: Tasks that run at once, in two processes; all together take some 10 s on one core.
TASKS, PROCESSES = 10, 2
REQUEST = SHORT | {"num_inference_steps": 40}
#: Shorter than some failovers: then no lease can be renewed in time.
LEASE_S = 4


@pytest.fixture(scope="module", params=["6.2", "7.0"])
def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sentinels.Watched]:
    """Three Redis and three sentinels."""
    if request.param == "7.0" and not SYSTEM_REDIS.exists():
        pytest.skip(f"no {SYSTEM_REDIS} here")
    program = wheel_redis() if request.param == "6.2" else str(SYSTEM_REDIS)
    with sentinels.Watched(tmp_path_factory.mktemp("watched"), program) as running:
        yield running


@pytest.fixture(scope="module")
def worker(
    watched: sentinels.Watched, start_service: Callable[..., AbstractContextManager[Service]]
) -> Iterator[Service]:
    """Worker processes whose pictures do not depend on other tasks."""
    command = [sys.executable, "-m", "worker", "run", "--workers", str(PROCESSES)]
    options = {
        "lease_s": str(LEASE_S), "slots": str(TASKS // PROCESSES), "max_batch_rows": "1"
    }  # fmt: skip
    with start_service(watched.url, command, **options) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(worker: Service) -> list[str]:
    """The pictures' digests, made without a failover."""
    return [digest(each) for each in submit(worker)]


def submit(worker: Service) -> list[TaskHandle]:
    """Submit the tasks, each with a seed of its own."""
    return [worker.client.submit(REQUEST | {"seed": seed}) for seed in range(TASKS)]


def digest(handle: TaskHandle) -> str:
    """The digest of a task's picture; waits for its end."""
    (image,) = handle.result(END_S).images
    return str(image.sha256)


def fall_over(watched: sentinels.Watched) -> None:
    """Promote a replica, as an operator does who wants to lose nothing."""
    watched.fail_over()


def die(watched: sentinels.Watched) -> None:
    """Kill the primary's process and start it again, as a replica."""
    watched.kill_primary().start()


@pytest.mark.parametrize("change", [fall_over, die])
def test_ten_running_tasks_end_once_and_alike(
    watched: sentinels.Watched,
    worker: Service,
    undisturbed: list[str],
    change: Callable[[sentinels.Watched], None],
) -> None:
    """Each of ten running tasks ends once, with the undisturbed picture; no message is left."""
    watched.wait_for_replicas()
    handles = submit(worker)
    for handle in handles:
        wait_for(handle, "started")
    change(watched)
    assert any(handle.status() == "running" for handle in handles), "all had ended before"
    assert [digest(handle) for handle in handles] == undisturbed
    for handle in handles:
        events = list(handle.events(timeout=END_S))
        check_events(events)
        starts = [event.attempt for event in events if event.type == "started"]
        assert starts == list(range(1, len(starts) + 1))

    def is_empty() -> bool:
        with watched.connect() as redis:
            held: Any = redis.exists(UNACKED, UNACKED_INDEX)
            return not held and not redis.keys("generate.*")

    wait_until(is_empty)
    assert worker.process.poll() is None
    assert "exited (" not in worker.log.read_text()
