"""A task that arrives during a UNet call of a busy engine: how many calls until it has what.

Counts, no times: they are the same on every machine.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING

from benchmarks import model as models
from benchmarks.bare import BareEngine
from worker.job_control import JobStopped, Stop

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from benchmarks.model import Model
    from benchmarks.tasks import Task
    from worker.engine.denoising.passes import StepOutput
    from worker.engine.image_state import ImageState
    from worker.engine.jobs.job import JobResult
    from worker.engine.runner import Runner


@dataclass(frozen=True)
class Arrival:
    """UNet calls after the one during which the task arrived; 1 is the next one."""

    #: The first one that it took part in.
    to_first_call: int
    #: The one that completed its first step.
    to_first_step: int
    #: The last one that it took part in.
    to_picture: int
    #: How many it took part in: what `to_picture` is on an idle engine.
    own_calls: int


class ArrivalSide(BareEngine):
    """A bare engine whose UNet calls are counted; the model is loaded with the first task."""

    def __init__(self, model: Model, max_batch_rows: int) -> None:
        from worker.engine.runner import Runner  # noqa: PLC0415  # the parent of the sides loads no torch

        models.silence_libraries()
        #: The ids of the tasks in each call.
        self._calls: list[set[str]] = []
        #: The task that is submitted during call number `_arrives_in`.
        self._newcomer: Task | None = None
        self._arrives_in = 0
        self._submitted = threading.Event()
        self._future: Future[JobResult] | None = None
        evaluate = Runner.evaluate

        @wraps(evaluate)
        def counted(runner: Runner, images: Sequence[ImageState]) -> list[StepOutput]:
            self._calls.append({image.job.id for image in images})
            if len(self._calls) == self._arrives_in and self._newcomer is not None:
                self._future = self.submit(self._newcomer)
                self._submitted.set()
            return evaluate(runner, images)

        Runner.evaluate = counted  # type: ignore[assignment, method-assign]  # for this process
        super().__init__(model, max_batch_rows=max_batch_rows)

    def arrive(self, others: Sequence[Task], newcomer: Task, in_call: int) -> Arrival:
        """Submit the others together, and the newcomer during their call number `in_call`.

        The others end when it has its picture. Its sampler must evaluate the UNet once a step.
        """
        self._calls.clear()
        self._controls.clear()
        self._submitted.clear()
        self._newcomer, self._arrives_in = newcomer, in_call
        futures = [self.submit(other) for other in others]
        self._submitted.wait()
        assert self._future is not None
        self._future.result()
        for control in self._controls:
            control.request(Stop.CANCELLED)
        for future in futures:
            with suppress(JobStopped):
                future.result()
        mine = newcomer.job().id
        own = [number for number, ids in enumerate(self._calls, 1) if mine in ids]
        calls_a_step = 2 if newcomer.sag_scale else 1
        first, step, last = own[0], own[calls_a_step - 1], own[-1]
        return Arrival(first - in_call, step - in_call, last - in_call, len(own))
