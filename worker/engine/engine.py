"""The engine of one device: takes jobs from any thread, runs them together on a thread of its own.

The thread `engine` runs the rounds of a `Batch`. The thread `engine-side` runs what waits for the
device: previews, callbacks, checkpoints, finished images.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from worker.engine.batch import Batch
from worker.engine.model_cache import ModelCache
from worker.engine.running_job import RunningJob
from worker.errors import UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.config.models import ModelSpec
    from worker.engine.job import Job, JobResult
    from worker.engine.model_loader import LoadedModel
    from worker.job_control import Control

#: Pause between two looks whether a model is downloaded, while no job runs, in seconds.
FETCH_POLL_S = 0.02


def load_model(
    spec: ModelSpec, device: str, offload: str, *, compiled: bool = False
) -> LoadedModel:
    """Load a pipeline, see `model_loader.load`."""
    from worker.engine import model_loader  # noqa: PLC0415  # torch takes seconds to import

    return model_loader.load(spec, device, offload, compiled=compiled)


def fetch_model(spec: ModelSpec) -> None:
    """Download a model of the hub, see `model_loader.fetch`."""
    from worker.engine import model_loader  # noqa: PLC0415  # as above

    model_loader.fetch(spec)


class Engine:
    """One device and the jobs that share it."""

    def __init__(  # noqa: PLR0913  # each is a setting
        self,
        models: Mapping[str, ModelSpec],
        device: str,
        offload: str,
        *,
        max_models: int = 1,
        max_batch_rows: int | None = None,
        compiled: bool = False,
        load_timeout_s: float = 1800.0,
        loader: Callable[..., LoadedModel] = load_model,
        fetch: Callable[[ModelSpec], object] = fetch_model,
    ) -> None:
        """Start nothing: the thread starts and a model is loaded with the first job.

        `max_batch_rows` limits the rows of a UNet call; None measures them when a model is loaded.
        A model that is not downloaded in `load_timeout_s` fails its jobs; others go on meanwhile.
        """
        self.device = device
        self._specs = models
        self._runners = ModelCache(
            models,
            lambda spec: loader(spec, device, offload, compiled=compiled),
            max_models,
            max_batch_rows,
            load_timeout_s=load_timeout_s,
            fetch=fetch,
        )
        #: None ends the thread.
        self._inbox: queue.SimpleQueue[RunningJob | None] = queue.SimpleQueue()
        self._lock, self._submitted = threading.Lock(), 0
        #: Start of the call that each thread is running, by the thread's id.
        self._call_began_s: dict[int, float] = {}
        self._thread: threading.Thread | None = None

    def loading_s(self, model: str) -> float | None:
        """Seconds since a model's download or loading began; None when there is none."""
        return self._runners.loading_s(model)

    @property
    def downloads_s(self) -> dict[str, float]:
        """Seconds since each unfinished download of a model began, by alias."""
        return self._runners.downloads_s

    @property
    def step_s(self) -> float:
        """Seconds that the current step has taken so far, 0 when idle.

        Loading a model counts only beyond `load_timeout_s`, and then as infinite.
        """
        if (overdue_s := self._runners.overdue_s) is not None:
            return float("inf") if overdue_s else 0.0
        began_s = min(list(self._call_began_s.values()), default=float("inf"))
        return max(0.0, time.perf_counter() - max(began_s, self._runners.load_ended_s))

    def submit(self, job: Job, control: Control) -> Future[JobResult]:
        """Queue a job, from any thread. The future raises `JobStopped` or a `TaskFailedError`."""
        future: Future[JobResult] = Future()
        if job.model not in self._specs:
            known = ", ".join(sorted(self._specs))
            message = f"no model {job.model!r} on this worker; it serves {known}"
            future.set_exception(UnknownModelError(message, where="model"))
            return future
        with self._lock:
            self._submitted += 1
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="engine", daemon=True)
                thread.start()
                self._thread = thread
            self._inbox.put(RunningJob(self._submitted, job, control, future))
        return future

    def close(self) -> None:
        """Wait until all submitted jobs have ended, then end the thread and drop the models."""
        with self._lock:
            if self._thread is not None:
                self._inbox.put(None)
                self._thread.join()
                self._thread = None
        self._runners.clear()

    def _serve(self) -> None:
        closing = False
        self._use_device()
        with ThreadPoolExecutor(
            1, thread_name_prefix="engine-side", initializer=self._use_device
        ) as side_executor:
            batch = Batch(self._runners, lambda *call: side_executor.submit(self._timed, *call))
            while batch.is_busy or not closing:
                closing = self._receive(batch) or closing
                try:
                    self._timed(batch.step)
                except BaseException as error:  # noqa: BLE001  # without this thread no job ends
                    batch.abandon(error)

    def _use_device(self) -> None:
        """Make the device the current one of this thread: libraries ask for "cuda" alone."""
        if self.device.startswith("cuda:"):
            import torch  # noqa: PLC0415  # takes seconds to import

            torch.cuda.set_device(self.device)

    def _timed(self, call: Callable[..., object], *args: Any) -> None:  # noqa: ANN401  # any call's
        thread = threading.get_ident()
        self._call_began_s[thread] = time.perf_counter()
        try:
            call(*args)
        finally:
            del self._call_began_s[thread]

    def _receive(self, batch: Batch) -> bool:
        """Move submitted jobs to the batch; returns whether to close.

        Blocks while the batch is idle, and for `FETCH_POLL_S` while it only waits for a download.
        """
        while not (batch.is_busy and self._inbox.empty()) or batch.only_fetches:
            try:
                running = self._inbox.get(timeout=FETCH_POLL_S if batch.only_fetches else None)
            except queue.Empty:
                return False
            if running is None:
                return True
            batch.add(running)
        return False
