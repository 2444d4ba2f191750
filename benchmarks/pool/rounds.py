"""An engine that computes nothing: rounds at a fixed pace, as events and checkpoints show them."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from worker.background import BackgroundThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.pool.plan import Plan
    from worker.job_control import Control, Stop
    from worker.record.claim import Claim
    from worker.record.event_publisher import EventPublisher

#: How long the thread waits for a job before it checks whether to stop, in seconds.
STOP_CHECK_S = 1.0


@dataclass(eq=False)
class Job:
    """A task that is denoised."""

    claim: Claim
    control: Control
    step: int = 0
    #: Why it ended early.
    stopped: Stop | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Rounds:
    """Advances all jobs of a worker by a step, every `round_s`."""

    def __init__(
        self, plan: Plan, publisher: EventPublisher, on_error: Callable[[Exception], object]
    ) -> None:
        """`publisher` gets events and checkpoints."""
        self._plan, self._publisher = plan, publisher
        self._state = random.Random(0).randbytes(plan.checkpoint_bytes)  # noqa: S311  # no secret
        #: Those that wait for their first round, and those that had it.
        self._new: SimpleQueue[Job] = SimpleQueue()
        self._jobs: list[Job] = []
        #: So many first jobs begin at a random step: at the start no two end together.
        self._unequal = plan.slots
        self._next_s = time.monotonic() + random.uniform(0, plan.round_s)  # noqa: S311  # no secret
        self._thread = BackgroundThread("rounds", self._wait_and_step, on_error)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._thread.stop()

    def run(self, claim: Claim, control: Control) -> Job:
        """Do all steps of a task, or those until it is stopped."""
        job = Job(claim, control)
        if self._unequal:
            self._unequal -= 1
            job.step = random.randrange(self._plan.steps)  # noqa: S311  # no secret
        self._new.put(job)
        job.done.wait()
        return job

    def _wait_and_step(self) -> None:
        if not self._jobs:
            try:
                self._jobs.append(self._new.get(timeout=STOP_CHECK_S))
            except Empty:
                return
        now_s = time.monotonic()
        if self._next_s > now_s:
            self._thread.pause(self._next_s - now_s)
        self._next_s = max(self._next_s + self._plan.round_s, now_s)
        while not self._new.empty():
            self._jobs.append(self._new.get())
        for job in list(self._jobs):
            job.stopped = job.control.asked()
            if job.stopped is None:
                self._step(job)
            if job.stopped is not None or job.step == self._plan.steps:
                self._jobs.remove(job)
                job.done.set()

    def _step(self, job: Job) -> None:
        """Publish what `execution.attempt` publishes of a step."""
        job.step += 1
        plan = self._plan
        left_s = (plan.steps - job.step) * plan.round_s
        fields = {"step": job.step, "total_steps": plan.steps, "eta_s": left_s}
        self._publisher.post(job.claim, "progress", fields | {"preview": None, "metadata": {}})
        every = plan.checkpoint_every
        if every and job.step % every == 0 and job.step < plan.steps:
            self._publisher.save_checkpoint(job.claim, job.step, self._state)
