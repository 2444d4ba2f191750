"""The jobs that wait for their first round, and which of them start in it. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api_contracts.names import PRIORITIES
from worker.engine import batch_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from worker.engine.batch_scheduler import AdapterBudget
    from worker.engine.job import Job
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
        self,
        busy: Collection[str],
        capacity: int,
        is_loaded: Callable[[Job], bool],
        budget: AdapterBudget,
    ) -> list[RunningJob]:
        """Remove and return the jobs that start in this round, in order.

        `busy` are the models of running jobs; at most `capacity` models run at once. `budget` has
        the adapters of running jobs, and then also of those that start. A model, or an adapter, is
        not loaded in a round in which a more urgent job starts: that would delay its first call.
        One job with a picture starts in a round, because all others wait while it is encoded.
        """
        self.jobs.sort(key=_turn)
        number = batch_scheduler.admit([each.job.model for each in self.jobs], busy, capacity)
        taken: list[RunningJob] = []
        put_off: list[RunningJob] = []
        #: Models of jobs that wait for room for their adapters: later ones with some wait behind.
        blocked: set[str] = set()
        models = set(busy)
        for running in self.jobs[:number]:
            model, names = running.job.model, running.job.adapter_names
            if names and (model in blocked or not budget.has_room(model, names)):
                blocked.add(model)
                put_off.append(running)
                continue
            if _has_picture(running) and any(map(_has_picture, taken)):
                put_off.append(running)
                continue
            is_less_urgent = bool(taken) and _turn(taken[0])[0] < _turn(running)[0]
            is_there = model in models and names <= budget.used(model)
            if is_less_urgent and not is_there and not is_loaded(running.job):
                break
            models.add(model)
            budget.use(model, names)
            taken.append(running)
        behind = self.jobs[len(taken) + len(put_off) :]
        _count_overtaken(behind, taken)
        for running in put_off:
            _count_overtaken([running], [each for each in taken if _compete(running, each)])
        self.jobs = put_off + behind
        return taken


def _has_picture(running: RunningJob) -> bool:
    return running.job.image is not None


def _compete(one: RunningJob, other: RunningJob) -> bool:
    """Whether one may wait for the other: both have a picture, or adapters of the same model."""
    if _has_picture(one) and _has_picture(other):
        return True
    same_model = one.job.model == other.job.model
    return same_model and bool(one.job.adapter_names) and bool(other.job.adapter_names)


def _count_overtaken(waiting: Sequence[RunningJob], taken: Sequence[RunningJob]) -> None:
    """Count the round for each waiting job that is older than one that was taken."""
    newest = max((running.number for running in taken), default=0)
    for running in waiting:
        running.overtaken_rounds += running.number < newest


def _turn(running: RunningJob) -> tuple[int, int]:
    """Sort key: priority (before all of them after too many overtaken rounds), then age."""
    is_starved = running.overtaken_rounds >= MAX_OVERTAKEN_ROUNDS
    return PRIORITIES[0] - 1 if is_starved else running.priority, running.number
