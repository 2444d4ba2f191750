"""The jobs that wait for their first round, and which of them start in it. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api_contracts.names import PRIORITIES
from worker.engine import batch_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.engine.running_job import RunningJob

#: Rounds in which younger jobs may start before a waiting one. Then it goes before all others.
MAX_OVERTAKEN_ROUNDS = 8


class WaitingJobs:
    """Submitted jobs. The most urgent starts first, of equally urgent ones the oldest."""

    def __init__(self) -> None:
        self.jobs: list[RunningJob] = []

    def add(self, running: RunningJob) -> None:
        """Add a job that is younger than all others."""
        self.jobs.append(running)

    def remove_cancelled(self) -> None:
        """Remove the jobs whose callers have cancelled their futures."""
        self.jobs = [each for each in self.jobs if not each.future.cancelled()]

    def take(
        self, busy: Collection[str], capacity: int, is_loaded: Callable[[str], bool]
    ) -> list[RunningJob]:
        """Remove and return the jobs that start in this round, in order.

        `busy` are the models of running jobs; at most `capacity` models run at once. A model is
        not loaded in a round in which a more urgent job starts: that would delay its first call.
        """
        self.jobs.sort(key=_turn)
        number = batch_scheduler.admit([each.job.model for each in self.jobs], busy, capacity)
        taken: list[RunningJob] = []
        models = set(busy)
        for running in self.jobs[:number]:
            model = running.job.model
            is_less_urgent = bool(taken) and _turn(taken[0])[0] < _turn(running)[0]
            if is_less_urgent and model not in models and not is_loaded(model):
                break
            models.add(model)
            taken.append(running)
        self.jobs = self.jobs[len(taken) :]
        newest = max((running.number for running in taken), default=0)
        for running in self.jobs:
            running.overtaken_rounds += running.number < newest
        return taken


def _turn(running: RunningJob) -> tuple[int, int]:
    """Sort key: priority (before all of them after too many overtaken rounds), then age."""
    is_starved = running.overtaken_rounds >= MAX_OVERTAKEN_ROUNDS
    return PRIORITIES[0] - 1 if is_starved else running.priority, running.number
