"""Deliveries beside each other in one process, while the engine is busy."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.record.owners import LEASE_S, kinds, record
from worker.attempt import Attempts
from worker.celery_state import CeleryState
from worker.engine.engine import Engine
from worker.errors import ModelLoadFailed
from worker.execute import Delivery, Executor
from worker.lease import Lease
from worker.messages import Messages
from worker.model_spec import ModelSpec
from worker.outcome import Cancelled, Dropped, Failed, Outcome, Requeued
from worker.publisher import Publisher
from worker.settings import Settings
from worker.shelf import Shelf
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from api_contracts import GenerationClient
    from api_contracts.names import Keys
    from worker.status import Status

WAIT_S = 30
BROKEN = "model_load_failed: told to"


class Busy:
    """An executor whose engine builds its model until it is told to fail, for task `first`."""

    first: Future[Outcome]

    def __init__(self, status: Status, alias: str) -> None:
        self.building, self.go_on = threading.Event(), threading.Event()
        models = {alias: ModelSpec(path="/nowhere", safety_checker=False)}
        settings = Settings(models=models, max_attempts=2)
        self._engine = Engine(models, "cpu", "none", loader=self._load)
        self._publisher = Publisher(status, CeleryState(lambda *_: None))
        shelf = Shelf(Storage(settings))
        attempts = Attempts(settings, status, self._publisher, self._engine, shelf)
        self.lease = Lease(status.redis, status.keys, Messages(status.redis), list, LEASE_S)
        self.lease.start()
        self.broken: list[str] = []
        self.executor = Executor(settings, status, self.lease, attempts, "cpu", self.broken.append)
        self._alias = alias
        self._threads = ThreadPoolExecutor(4)

    def deliver(self, task_id: str) -> Future[Outcome]:
        """Have a slot's thread do a delivery."""
        request = {"prompt": "x", "model": self._alias}
        return self._threads.submit(self.executor.execute, Delivery(task_id, request))

    def close(self) -> None:
        """Let the build fail, and wait for the rest."""
        self.go_on.set()
        self._threads.shutdown()
        self._engine.close()
        self._publisher.close()
        self.lease.close()

    def _load(self, *_: Any, **__: Any) -> NoReturn:
        self.building.set()
        assert self.go_on.wait(WAIT_S)
        raise ModelLoadFailed("told to")


@pytest.fixture
def busy(status: Status, namespace: str) -> Iterator[Busy]:
    """The executor, doing task `first`."""
    made = Busy(status, namespace)
    made.first = made.deliver("first")
    assert made.building.wait(WAIT_S)
    yield made
    made.close()


def test_a_task_in_line_hears_of_its_cancel(busy: Busy, client: GenerationClient) -> None:
    """A claimed task that waits for the engine ends when it is cancelled, not when it is its turn.

    The task before it goes on.
    """
    second = busy.deliver("second")
    handle = client.handle("second")
    while client.status_many(["second"])["second"] is None:
        pass
    handle.cancel()
    assert second.result(WAIT_S) == Cancelled(0)
    assert not busy.first.done()


def test_a_drain_gives_back_what_is_in_line(busy: Busy) -> None:
    """A drain waits for no turn: what has not begun goes back at once, and is no attempt."""
    second = busy.deliver("second")
    while len(busy.lease.held()) < 2:
        pass
    busy.executor.drain()
    assert second.result(WAIT_S) == Requeued("worker drained at step 0", counts=False)
    assert not busy.first.done()


def test_a_duplicate_takes_no_slot(busy: Busy) -> None:
    """A second message of a running task is dropped at once, also by the process that runs it."""
    assert isinstance(busy.deliver("first").result(WAIT_S), Dropped)
    assert not busy.first.done()


def test_a_fault_of_ours_is_an_attempt(
    busy: Busy, client: GenerationClient, redis: Redis, keys: Keys
) -> None:
    """A task that fails for a reason of ours goes back, and fails with the last of its attempts."""
    busy.go_on.set()
    assert busy.first.result(WAIT_S) == Requeued(BROKEN, counts=True)
    assert record(redis, keys, "first")["status"] == "queued"
    assert busy.lease.held() == []
    last = busy.deliver("first").result(WAIT_S)
    assert isinstance(last, Failed)
    assert last.error.code == "model_load_failed"
    told = [kind for kind in kinds(redis, client.keys, "first") if kind != "loading"]
    assert told == ["started", "requeued", "started", "failed"]
    assert record(redis, keys, "first")["attempt"] == "2"
    assert busy.broken == []


def test_the_log_tells_what_became_of_a_task(busy: Busy, caplog: pytest.LogCaptureFixture) -> None:
    """Claim and end of each attempt are a line, with the code and the reason of a failure."""
    caplog.set_level("INFO")
    busy.deliver("first").result(WAIT_S)
    busy.go_on.set()
    busy.first.result(WAIT_S)
    busy.deliver("first").result(WAIT_S)
    busy.executor.execute(Delivery("bad", {"prompt": 5, "secret words": "a"}))
    lines = [record.getMessage() for record in caplog.records if record.name == "worker.execute"]
    assert lines[0].startswith("task first: not run, a duplicate")
    assert lines[1:] == [
        f"task first attempt 1: requeued ({BROKEN})",
        "task first attempt 2: claimed (fence 2)",
        "task first attempt 2: failed (model_load_failed: told to)",
        "task bad attempt 1: claimed (fence 1)",
        "task bad attempt 1: failed (invalid_request: prompt, secret words)",
    ]
