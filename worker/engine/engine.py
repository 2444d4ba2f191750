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

from api_contracts.request_types import MAX_LORAS
from worker.engine.batch import Batch
from worker.engine.jobs.running_job import RunningJob
from worker.engine.loading.downloads import Downloads
from worker.engine.model_cache import ModelCache
from worker.errors import UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.config.models import ModelSpec
    from worker.engine.jobs.job import Job, JobResult
    from worker.engine.loaded_model import LoadedModel
    from worker.job_control import Control


def load_model(
    spec: ModelSpec, device: str, offload: str, *, compiled: bool = False
) -> LoadedModel:
    """Load a pipeline, see `model_loader.load`."""
    from worker.engine.loading import model_loader  # noqa: PLC0415  # torch takes seconds to import

    return model_loader.load(spec, device, offload, compiled=compiled)


def download_model(spec: ModelSpec) -> None:
    """Download a model of the hub, see `hub.download`."""
    from worker.engine.loading import hub  # noqa: PLC0415  # as above

    hub.download(spec)


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
        max_adapters: int = MAX_LORAS,
        compiled: bool = False,
        load_timeout_s: float = 1800.0,
        loader: Callable[..., LoadedModel] = load_model,
        download: Callable[[ModelSpec], object] = download_model,
    ) -> None:
        """Start nothing: the thread starts and a model is loaded with the first job.

        `max_batch_rows` limits the rows of a UNet call; None measures them when images wait.
        A loading that takes longer than `load_timeout_s` counts as a device that hangs.
        """
        self.device = device
        self._specs, self._load_timeout_s = models, load_timeout_s
        self._downloads = Downloads(models, download)
        self._runners = ModelCache(
            models,
            lambda spec: loader(spec, device, offload, compiled=compiled),
            max_models,
            max_batch_rows,
            max_adapters,
        )
        #: None ends the thread.
        self._inbox: queue.SimpleQueue[RunningJob | None] = queue.SimpleQueue()
        self._lock, self._submitted = threading.Lock(), 0
        #: Start of the call that each thread is running, by the thread's id.
        self._call_began_s: dict[int, float] = {}
        self._thread: threading.Thread | None = None

    @property
    def downloads_s(self) -> dict[str, float]:
        """Seconds since each running download of a model began, by alias."""
        return self._downloads.times_s

    def loading_s(self, model: str) -> float | None:
        """Seconds since a model's download or loading began; None when there is none."""
        loading = self._runners.loading
        if loading is not None and loading[0] == model:
            return loading[1]
        return self._downloads.times_s.get(model)

    def stall(self, step_timeout_s: float) -> str | None:
        """Why the device counts as hanging, with the limit that was exceeded; None if it does not.

        Loading a model is no step.
        """
        if (loading := self._runners.loading) is not None:
            model, seconds = loading
            if seconds <= self._load_timeout_s:
                return None
            return f"loading model {model!r} lasts longer than {self._load_timeout_s:g} s"
        if self.step_s <= step_timeout_s:
            return None
        return f"a step lasts longer than {step_timeout_s:g} s"

    @property
    def step_s(self) -> float:
        """Seconds that the current step has taken so far, loading excluded; 0 when idle."""
        if self._runners.loading is not None:
            return 0.0
        began_s = min(list(self._call_began_s.values()), default=float("inf"))
        return max(0.0, time.perf_counter() - max(began_s, self._runners.load_ended_s))

    def download(self, model: str) -> Future[None]:
        """Make sure that a model's files are on this machine, from any thread, before `submit`.

        Call it again while waiting: a download is tried again while a job waits for it. The future
        raises a `TaskFailedError`. It may never be done: a hub may not answer.
        """
        if model in self._specs and not self._runners.is_loaded(model):
            return self._downloads.wanted(model)
        done: Future[None] = Future()
        done.set_result(None)  # `submit` refuses a model that is unknown
        return done

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
        from worker.engine.device import torch_threads  # noqa: PLC0415  # torch takes seconds to import

        closing = False
        torch_threads.use_all()
        self._use_device()
        with ThreadPoolExecutor(
            1, thread_name_prefix="engine-side", initializer=self._begin_side
        ) as side_executor:
            batch = Batch(self._runners, lambda *call: side_executor.submit(self._timed, *call))
            while batch.is_busy or not closing:
                closing = self._receive(batch) or closing
                try:
                    self._timed(batch.step)
                except BaseException as error:  # noqa: BLE001  # without this thread no job ends
                    batch.abandon(error)

    def _begin_side(self) -> None:
        from worker.engine.device import torch_threads  # noqa: PLC0415  # torch takes seconds to import

        torch_threads.use_one()
        self._use_device()

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
        """Move submitted jobs to the batch, blocking while it is idle; returns whether to close."""
        while not (batch.is_busy and self._inbox.empty()):
            if (running := self._inbox.get()) is None:
                return True
            batch.add(running)
        return False
