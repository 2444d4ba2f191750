"""The engine: takes jobs from any thread, runs them on the one thread that owns the device."""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.errors import UnknownModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.engine.job import Control, Job, JobResult
    from worker.engine.models import LoadedModel
    from worker.settings import ModelSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ticket:
    job: Job
    control: Control
    future: Future[JobResult]
    submitted_s: float


def load_model(spec: ModelSpec, device: str, offload: str) -> LoadedModel:
    """Build a pipeline. Torch and diffusers are imported here, on the engine's thread."""
    from worker.engine import models  # noqa: PLC0415  # seconds, wanted on the first task only

    return models.load(spec, device, offload)


class Engine:
    """One device. Builds each model's pipeline once, on the first job that asks for it."""

    def __init__(
        self,
        models: Mapping[str, ModelSpec],
        device: str,
        offload: str,
        loader: Callable[[ModelSpec, str, str], LoadedModel] = load_model,
    ) -> None:
        """Start nothing yet: the thread and the pipeline come with the first job."""
        self.device = device
        self._specs = models
        self._offload = offload
        self._loader = loader
        self._loaded: dict[str, tuple[LoadedModel, float, float]] = {}
        self._tickets: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loading_since_s: float | None = None

    @property
    def loading_s(self) -> float | None:
        """Seconds for which a pipeline has been in the making, None when none is."""
        since_s = self._loading_since_s
        return None if since_s is None else time.perf_counter() - since_s

    def submit(self, job: Job, control: Control) -> Future[JobResult]:
        """Queue a job, from any thread. The future fails with `JobStopped` or a `TaskFault`."""
        future: Future[JobResult] = Future()
        if job.model not in self._specs:
            known = ", ".join(sorted(self._specs))
            message = f"no model {job.model!r} on this worker; it serves {known}"
            future.set_exception(UnknownModel(message, where="model"))
            return future
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
                self._thread.start()
        self._tickets.put(_Ticket(job, control, future, time.perf_counter()))
        return future

    def close(self) -> None:
        """End the thread after the jobs that wait; stop them first to be quick."""
        with self._start:
            if self._thread is not None:
                self._tickets.put(None)
                self._thread.join()
                self._thread = None
        self._loaded.clear()

    def _serve(self) -> None:
        while (ticket := self._tickets.get()) is not None:
            if ticket.future.set_running_or_notify_cancel():
                try:
                    ticket.future.set_result(self._run(ticket))
                except BaseException as error:  # noqa: BLE001  # without this thread no job ends
                    _forget_frames(error)
                    fault = error if isinstance(error, Exception) else RuntimeError(repr(error))
                    ticket.future.set_exception(fault)
                    self._free_memory()
            del ticket  # nor must its pictures wait here for the next

    def _run(self, ticket: _Ticket) -> JobResult:
        ticket.control.obey(0)
        model, began_s, ended_s = self._model(ticket.job.model)
        load_s = max(0.0, ended_s - max(began_s, ticket.submitted_s))
        wait_s = time.perf_counter() - ticket.submitted_s - load_s
        from worker.engine import runner  # noqa: PLC0415  # see `load_model`

        return runner.run(model, ticket.job, ticket.control, (wait_s, load_s))

    def _free_memory(self) -> None:
        from worker.engine import runner  # noqa: PLC0415  # see `load_model`

        runner.free_memory(self.device)

    def _model(self, alias: str) -> tuple[LoadedModel, float, float]:
        """The model, built if it is not, and when its build began and ended."""
        if alias not in self._loaded:
            self._loading_since_s = began_s = time.perf_counter()
            try:
                model = self._loader(self._specs[alias], self.device, self._offload)
            finally:
                self._loading_since_s = None
            self._loaded[alias] = model, began_s, time.perf_counter()
        return self._loaded[alias]


def _forget_frames(error: BaseException | None) -> None:
    """Empty the frames of an error and of its causes: they hold the job's tensors on the device."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
