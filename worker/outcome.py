"""How a delivery can end: a closed set."""

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


@dataclass(frozen=True)
class Failed:
    """The task can't be done."""

    error: TaskError


@dataclass(frozen=True)
class Cancelled:
    """Somebody asked for the end."""

    step: int


@dataclass(frozen=True)
class Expired:
    """The deadline passed."""

    step: int


@dataclass(frozen=True)
class Requeued:
    """The worker is leaving: the message goes back."""

    step: int


@dataclass(frozen=True)
class Dropped:
    """The task is another worker's; this message says nothing about it any more."""

    reason: str


Outcome = Succeeded | Failed | Cancelled | Expired | Requeued | Dropped
