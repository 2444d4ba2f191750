"""Counts which jobs shared UNet calls. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.job_control import Peer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from worker.engine.jobs.running_job import RunningJob


@dataclass(eq=False)
class CallRun:
    """Consecutive UNet calls of the same jobs."""

    #: By `RunningJob.number`.
    jobs: Mapping[int, Peer] = field(default_factory=dict)
    count: int = 0


class CallCounter:
    """Counts calls by the jobs in them: one comparison of sets a call, while those are the same."""

    def __init__(self) -> None:
        self._run = CallRun()

    def count(self, jobs: Sequence[RunningJob]) -> None:
        """Count a call of these jobs, all different."""
        if self._run.jobs.keys() != {each.number for each in jobs}:
            self._run = CallRun(
                {each.number: Peer(each.job.id, each.control.traceparent) for each in jobs}
            )
            for each in jobs:
                each.log.calls.append(self._run)
        self._run.count += 1


def calls_shared(runs: Iterable[CallRun], number: int) -> Counter[Peer]:
    """How many calls the job of this number shared with each other job."""
    shared: Counter[Peer] = Counter()
    for run in runs:
        for other, peer in run.jobs.items():
            if other != number:
                shared[peer] += run.count
    return shared
