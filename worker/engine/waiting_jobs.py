"""The jobs that wait for their first round, and which of them start in it. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api_contracts.names import PRIORITIES
from worker.engine import batch_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from worker.engine.batch_scheduler import AdapterBudget
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
        is_loaded: Callable[[str, Collection[str]], bool],
        budget: AdapterBudget,
    ) -> list[RunningJob]:
        """Remove and return the jobs that start in this round, in order.

        `busy` are the models of running jobs; at most `capacity` models run at once. `is_loaded`
        says whether a model is loaded, with these adapters. `budget` has the adapters of running
        jobs, and then also of those that start. A model, or an adapter, is not loaded in a round in
        which a more urgent job starts: that would delay the urgent job's first call. Jobs behind
        one that waits for its model wait, too; behind one that waits for adapters alone others
        start. One job with a picture starts in a round, because all others wait while it is
        encoded.
        """
        self.jobs.sort(key=_turn)
        number = batch_scheduler.admit([each.job.model for each in self.jobs], busy, capacity)
        taken: list[RunningJob] = []
        put_off: list[RunningJob] = []
        #: Jobs whose adapters would have to be loaded.
        unloaded: list[RunningJob] = []
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
            if is_less_urgent and not (model in models or is_loaded(model, ())):
                break
            if is_less_urgent and not (names <= budget.used(model) or is_loaded(model, names)):
                unloaded.append(running)
                continue
            models.add(model)
            budget.use(model, names)
            taken.append(running)
        behind = unloaded + self.jobs[len(taken) + len(put_off) + len(unloaded) :]
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
