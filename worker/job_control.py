"""How other threads stop a job, and how it reports its steps.

Shared by `engine` and `execution`; imports neither.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


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


@dataclass
class Control:
    """Cancellation token and callbacks of a job; a stop takes effect before the next UNet call."""

    on_step: Callable[[Step], None] = field(default=lambda _: None)
    #: On the monotonic clock, in seconds.
    deadline_s: float | None = None
    #: Gets the step and state of a checkpoint. The images of all jobs wait for this call.
    on_checkpoint: Callable[[int, bytes], None] = field(default=lambda _step, _state: None)
    _reason: Stop | None = None

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
