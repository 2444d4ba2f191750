"""How a delivery can end: a closed set, each with the words that the log has for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api_contracts.errors import TaskError
    from api_contracts.result import GenerationResult


@dataclass(frozen=True)
class Succeeded:
    """Everything is stored."""

    result: GenerationResult

    def __str__(self) -> str:
        return "succeeded"


@dataclass(frozen=True)
class Failed:
    """The task can't be done."""

    error: TaskError

    def __str__(self) -> str:
        # The message of a refused request repeats what was sent, which no log shall hold.
        places = [fault["where"] for fault in self.error.details.get("faults", ())]
        return f"failed ({self.error.code}: {ascii(', '.join(places) or self.error.message)[1:-1]})"


@dataclass(frozen=True)
class Cancelled:
    """Somebody asked for the end."""

    step: int

    def __str__(self) -> str:
        return f"cancelled at step {self.step}"


@dataclass(frozen=True)
class Expired:
    """The deadline passed."""

    step: int
    #: Whether it was the message's own, Celery's `expires`.
    by_message: bool = False

    def __str__(self) -> str:
        return f"expired at step {self.step}"


@dataclass(frozen=True)
class Requeued:
    """The task and its message go back, for another attempt."""

    reason: str
    #: Whether this attempt is one of those that a task has.
    counts: bool
    #: Reached in this attempt.
    step: int = 0

    def __str__(self) -> str:
        return f"requeued ({self.reason})"


@dataclass(frozen=True)
class Dropped:
    """The task is another worker's; this message says nothing about it any more."""

    reason: str

    def __str__(self) -> str:
        return self.reason


Outcome = Succeeded | Failed | Cancelled | Expired | Requeued | Dropped
