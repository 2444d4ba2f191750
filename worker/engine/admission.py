"""The jobs that wait for their model: for its files, for room, and until it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.engine import batch_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.model_cache import ModelCache
    from worker.engine.running_job import RunningJob


class Admission:
    """Only for the engine's thread, as the batch."""

    def __init__(
        self, runners: ModelCache, fail: Callable[[RunningJob, BaseException], None]
    ) -> None:
        """`fail` ends a job with an error, and removes it."""
        self._runners, self._fail = runners, fail
        self._waiting: list[RunningJob] = []
        #: There is room for their model, which is being loaded.
        self._loading: list[RunningJob] = []

    @property
    def jobs(self) -> list[RunningJob]:
        """All of them, in order of arrival but for those whose model is being loaded."""
        return self._loading + self._waiting

    def add(self, running: RunningJob) -> None:
        """Add a job."""
        self._waiting.append(running)

    def remove(self, running: RunningJob) -> None:
        """Remove a job, if it is here."""
        for jobs in (self._waiting, self._loading):
            if running in jobs:
                jobs.remove(running)

    def ready(self, running_models: set[str]) -> list[RunningJob]:
        """Take the jobs whose model is loaded, in order; begin to load others.

        `running_models` have running jobs. Fails the jobs of a model that can't be loaded.
        """
        fetched = self._of_models(self._waiting, self._runners.is_fetched)
        wanted = [running.job.model for running in fetched]
        busy = running_models | {each.job.model for each in self._loading}
        admitted = fetched[: batch_scheduler.admit(wanted, busy, self._runners.capacity)]
        self._waiting = [each for each in self._waiting if each not in admitted]
        self._loading += admitted
        busy |= {each.job.model for each in admitted}
        loaded = self._of_models(self._loading, lambda model: self._runners.request(model, busy))
        self._loading = [each for each in self._loading if each not in loaded]
        return loaded

    def _of_models(
        self, jobs: list[RunningJob], is_there: Callable[[str], bool]
    ) -> list[RunningJob]:
        """The jobs whose model `is_there`; fails those for which it raises."""
        found: set[str] = set()
        for model in dict.fromkeys(each.job.model for each in jobs):
            try:
                if is_there(model):
                    found.add(model)
            except BaseException as error:  # noqa: BLE001  # without this thread no job ends
                for running in [each for each in jobs if each.job.model == model]:
                    self._fail(running, error)
        return [each for each in jobs if each.job.model in found]
