"""How other threads stop a job, and how it reports its steps and stages.

Shared by `engine` and `execution`; imports neither.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: How often a task that waits for others checks whether it must stop, in seconds.
STOP_CHECK_PERIOD_S = 0.25


class Stop(StrEnum):
    """Why a job ends before it is done."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DRAINED = "drained"
    #: Another worker has claimed the task.
    SUPERSEDED = "superseded"


class JobStopped(Exception):
    """The job was stopped after `step` steps; other jobs and the pipeline are unaffected."""

    def __init__(self, reason: Stop, step: int) -> None:
        super().__init__(f"{reason} at step {step}")
        self.reason = reason
        self.step = step


@dataclass(frozen=True)
class Step:
    """A completed step of a job."""

    step: int
    total_steps: int
    #: Estimated duration of the remaining steps, from the mean of the completed ones, in seconds.
    eta_s: float
    #: Data URL of a small image, if the request asks for previews.
    preview: str | None = None


class Peer(NamedTuple):
    """A job, as the jobs that shared its UNet calls name it."""

    job_id: str
    #: Its `Control.traceparent`.
    traceparent: str


@dataclass(frozen=True)
class Stage:
    """A part of the work on a job. Times are seconds of `time.perf_counter`."""

    name: str
    began_s: float
    ended_s: float
    #: Of `denoise`: its UNet calls, and how many of them it shared with each other job.
    unet_calls: int = 0
    shared: Mapping[Peer, int] = field(default_factory=dict)


@dataclass
class Control:
    """Cancellation token and callbacks of a job; a stop takes effect before the next UNet call."""

    on_step: Callable[[Step], None] = field(default=lambda _: None)
    #: On the monotonic clock, in seconds.
    deadline_s: float | None = None
    #: Gets the step and state of a checkpoint. The images of all jobs wait for this call.
    on_checkpoint: Callable[[int, bytes], None] = field(default=lambda _step, _state: None)
    #: The span of this attempt, by which jobs that share its UNet calls name it; '' without one.
    traceparent: str = ""
    #: Stages outside of the engine that have ended.
    stages: list[Stage] = field(default_factory=list)
    #: The stages in the engine so far; the engine sets it.
    engine_stages: Callable[[], list[Stage]] = list
    _reason: Stop | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what is done meanwhile to `stages`, also when it raises."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.stages.append(Stage(name, began_s, time.perf_counter()))

    def request(self, reason: Stop) -> None:
        """Stop the job; the first reason is kept."""
        self._reason = self._reason or reason

    def asked(self) -> Stop | None:
        """Why the job must stop; None to continue."""
        if self._reason is None and self.deadline_s is not None:
            return Stop.EXPIRED if time.monotonic() > self.deadline_s else None
        return self._reason

    def obey(self, step: int) -> None:
        """Raise `JobStopped` if the job must stop."""
        if (reason := self.asked()) is not None:
            raise JobStopped(reason, step)
