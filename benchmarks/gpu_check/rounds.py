"""The engine without threads, so that a part sees its limit of rows between two rounds."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from worker.engine.batch import Batch
from worker.engine.jobs.running_job import RunningJob
from worker.engine.loading import model_loader
from worker.engine.model_cache import ModelCache
from worker.job_control import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.config.models import ModelSpec
    from worker.engine.jobs.job import Job, JobResult
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.runner import Runner


class Rounds:
    """One model on a device and the jobs that share it; each round is a call of `step`."""

    def __init__(
        self,
        spec: ModelSpec,
        device: str,
        max_batch_rows: int | None = None,
        change: Callable[[LoadedModel], None] = lambda _: None,
        load: Callable[[ModelSpec, str, str], LoadedModel] = model_loader.load,
    ) -> None:
        """`change` may change the loaded pipeline before it is used; `load` makes it."""

        def loaded(spec: ModelSpec) -> LoadedModel:
            model = load(spec, device, "none")
            change(model)
            return model

        self._runners = ModelCache({"default": spec}, loaded, 1, max_batch_rows)
        self._batch = Batch(self._runners, lambda call, *args: call(*args))
        self._submitted = 0

    @property
    def runner(self) -> Runner:
        """Of its model, which is loaded now if it was not."""
        return self._runners.get("default")

    def submit(self, job: Job, control: Control | None = None) -> Future[JobResult]:
        """Queue a job for the next round."""
        self._submitted += 1
        future: Future[JobResult] = Future()
        self._batch.add(RunningJob(self._submitted, job, control or Control(), future))
        return future

    def step(self) -> bool:
        """One round; gives whether something is left to do."""
        return self._batch.step()

    def results(self, jobs: Sequence[Job]) -> list[JobResult]:
        """Run jobs together until all have ended; raises the error of the first that failed."""
        futures = [self.submit(job) for job in jobs]
        while self.step():
            pass
        return [future.result(timeout=0) for future in futures]
