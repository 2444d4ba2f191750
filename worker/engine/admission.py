"""The jobs that wait: for the download of their model's files, and for room for their model."""

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
        #: In order of arrival.
        self.jobs: list[RunningJob] = []

    def admit(self, busy: set[str]) -> list[RunningJob]:
        """Take the jobs that may begin, in order; `busy` are the models with running jobs."""
        fetched = self._fetched()
        wanted = [running.job.model for running in fetched]
        admitted = fetched[: batch_scheduler.admit(wanted, busy, self._runners.capacity)]
        self.jobs = [each for each in self.jobs if each not in admitted]
        return admitted

    def _fetched(self) -> list[RunningJob]:
        """The jobs whose model's files are here; fails those whose download failed."""
        found: set[str] = set()
        for model in dict.fromkeys(each.job.model for each in self.jobs):
            try:
                if self._runners.is_fetched(model):
                    found.add(model)
            except BaseException as error:  # noqa: BLE001  # without this thread no job ends
                for running in [each for each in self.jobs if each.job.model == model]:
                    self._fail(running, error)
        return [each for each in self.jobs if each.job.model in found]
