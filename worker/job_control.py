"""How a running job is stopped from other threads, and how it reports its steps.

Knows neither the engine nor Celery: both sides share these types.
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
    """The job was stopped after `step` steps; the pipeline is as it was before."""

    def __init__(self, reason: Stop, step: int) -> None:
        super().__init__(f"{reason} at step {step}")
        self.reason = reason
        self.step = step


@dataclass(frozen=True)
class Step:
    """A step is done."""

    step: int
    total_steps: int
    #: Seconds that the steps left will take, by the mean of those done.
    eta_s: float
    #: Data URL of a small picture, where one was asked for.
    preview: str | None = None


@dataclass
class Control:
    """The other threads' hold on a job: what they ask takes effect before its next UNet call."""

    on_step: Callable[[Step], None] = field(default=lambda _: None)
    #: On the monotonic clock.
    deadline_s: float | None = None
    #: Gets a step, and what another attempt goes on from. The pictures of all jobs wait for it.
    on_checkpoint: Callable[[int, bytes], None] = field(default=lambda _step, _state: None)
    _reason: Stop | None = None

    def request(self, reason: Stop) -> None:
        """Stop before the next UNet call; the first reason given stays."""
        self._reason = self._reason or reason

    def asked(self) -> Stop | None:
        """Why to stop now, or None to go on."""
        if self._reason is None and self.deadline_s is not None:
            return Stop.EXPIRED if time.monotonic() > self.deadline_s else None
        return self._reason

    def obey(self, step: int) -> None:
        """Raise `JobStopped` when somebody asked for it."""
        if (reason := self.asked()) is not None:
            raise JobStopped(reason, step)
