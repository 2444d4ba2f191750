"""An executor over real parts, whose engine is busy until a test says so."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

from tests.record.owners import LEASE_S
from worker.broker.held_messages import HeldMessages
from worker.config.models import ModelSpec
from worker.config.settings import Settings
from worker.engine.engine import Engine
from worker.errors import ModelLoadError
from worker.execution.artifacts import Artifacts
from worker.execution.attempt import AttemptRunner
from worker.execution.claim_gate import ClaimGate
from worker.execution.delivery import Delivery
from worker.execution.executor import Executor
from worker.record.celery_state import CeleryState
from worker.record.event_publisher import EventPublisher
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.lease import Lease
from worker.storage import Storage

if TYPE_CHECKING:
    from worker.execution.outcome import Outcome
    from worker.record.task_record import TaskRecord

WAIT_S = 120
#: What an outcome says of the error with which its model fails to load.
BROKEN = "model_load_failed: broken"


class Busy:
    """An executor whose engine loads its model for task `first`, and then raises `error`.

    It has another model, `remote`, whose download lasts until `close`.
    """

    first: Future[Outcome]

    def __init__(self, records: TaskRecord, alias: str, **settings: Any) -> None:
        self.error = ModelLoadError("broken")
        self.building, self.go_on = threading.Event(), threading.Event()
        self.downloading, self._closed = threading.Event(), threading.Event()
        models = {
            alias: ModelSpec(path="/nowhere", safety_checker=False),
            "remote": ModelSpec(path="owner/name", safety_checker=False),
        }
        used = Settings(models=models, max_attempts=2, **settings)
        self._engine = Engine(models, "cpu", "none", loader=self._load, download=self._download)
        self._publisher = EventPublisher(records, CeleryState(lambda *_: None))
        artifacts = Artifacts(Storage(used))
        attempts = AttemptRunner(used, records, self._publisher, self._engine, artifacts)
        self.tasks, messages = ActiveTasks(), HeldMessages(records.redis)
        self._lease = Lease(
            records.redis, records.keys, self.tasks, messages, list, LEASE_S, owner=records.owner
        )
        self._lease.start()
        self.gate = ClaimGate(self._lease)
        self.broken: list[str] = []
        self.executor = Executor(
            used, records, self.tasks, self.gate, attempts,
            device="cpu", on_broken=self.broken.append,
        )  # fmt: skip
        self._alias = alias
        self._threads = ThreadPoolExecutor(8)

    def deliver(self, task_id: str, model: str | None = None) -> Future[Outcome]:
        """Execute a delivery on the thread of a slot."""
        request = {"prompt": "x", "model": model or self._alias}
        return self._threads.submit(self.executor.execute, Delivery(task_id, request))

    def close(self) -> None:
        """Let the loading fail and the download end, and wait for the rest."""
        self.go_on.set()
        self._closed.set()
        self._threads.shutdown()
        self._engine.close()
        self._publisher.close()
        self._lease.close()

    def _load(self, *_: Any, **__: Any) -> NoReturn:
        self.building.set()
        assert self.go_on.wait(WAIT_S)
        raise self.error

    def _download(self, spec: ModelSpec) -> None:
        if spec.path == "owner/name":
            self.downloading.set()
            assert self._closed.wait(WAIT_S)
