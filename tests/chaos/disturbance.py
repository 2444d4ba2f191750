"""The ways in which a link can be disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """What happens to a link's connections."""

    PASS = "pass"
    #: Every piece, either way, comes later.
    DELAY = "delay"
    #: The connections that are there swallow everything both ways and stay; new ones pass.
    HALF_OPEN = "half-open"
    #: The connections that are there bring requests, and swallow the answers; new ones pass.
    DEAF = "deaf"
    #: All connections swallow everything both ways and stay, new ones too.
    STALL = "stall"
    #: The connections that are there are reset, and so is each new one.
    REFUSE = "refuse"
    #: The connections that are there are reset; new ones get an HTTP error for an answer.
    ERROR = "error"

    @property
    def is_of_present(self) -> bool:
        """Whether it is a mode of the connections that are there, not of the link."""
        return self in (Mode.HALF_OPEN, Mode.DEAF)

    @property
    def resets(self) -> bool:
        """Whether it begins with the end of the connections that are there."""
        return self in (Mode.REFUSE, Mode.ERROR)

    def swallows(self, *, answers: bool) -> bool:
        """Whether what goes this way is swallowed."""
        return self in (Mode.HALF_OPEN, Mode.STALL) or (answers and self is Mode.DEAF)


@dataclass(frozen=True)
class Disturbance:
    """A mode with what it needs."""

    mode: Mode = Mode.PASS
    delay_s: float = 0.0
    #: HTTP's, for `ERROR`.
    status: int = 503
