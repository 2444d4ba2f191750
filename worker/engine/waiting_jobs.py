"""The jobs that wait for their first round, and which of them start in it. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api_contracts.names import PRIORITIES
from worker.engine import batch_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

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
        One job with a picture starts in a round, because all others wait while it is encoded.
        """
        self.jobs.sort(key=_turn)
        number = batch_scheduler.admit([each.job.model for each in self.jobs], busy, capacity)
        taken: list[RunningJob] = []
        put_off: list[RunningJob] = []
        models = set(busy)
        for running in self.jobs[:number]:
            if _has_picture(running) and any(map(_has_picture, taken)):
                put_off.append(running)
                continue
            model = running.job.model
            is_less_urgent = bool(taken) and _turn(taken[0])[0] < _turn(running)[0]
            if is_less_urgent and model not in models and not is_loaded(model):
                break
            models.add(model)
            taken.append(running)
        behind = self.jobs[len(taken) + len(put_off) :]
        _count_overtaken(behind, taken)
        _count_overtaken(put_off, [*filter(_has_picture, taken)])  # others do not delay them
        self.jobs = put_off + behind
        return taken


def _has_picture(running: RunningJob) -> bool:
    return running.job.image is not None


def _count_overtaken(waiting: Sequence[RunningJob], taken: Sequence[RunningJob]) -> None:
    """Count the round for each waiting job that is older than one that was taken."""
    newest = max((running.number for running in taken), default=0)
    for running in waiting:
        running.overtaken_rounds += running.number < newest


def _turn(running: RunningJob) -> tuple[int, int]:
    """Sort key: priority (before all of them after too many overtaken rounds), then age."""
    is_starved = running.overtaken_rounds >= MAX_OVERTAKEN_ROUNDS
    return PRIORITIES[0] - 1 if is_starved else running.priority, running.number
