"""The ways in which a proxy link can be disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """What a link does to its connections."""

    PASS = "pass"
    #: Every chunk is delayed, both ways.
    DELAY = "delay"
    #: Open connections swallow everything both ways and stay open; new ones pass.
    HALF_OPEN = "half-open"
    #: Open connections forward requests and swallow the answers; new ones pass.
    DEAF = "deaf"
    #: All connections, new ones too, swallow everything both ways and stay open.
    STALL = "stall"
    #: Open connections are reset, and so is each new one.
    REFUSE = "refuse"
    #: Open connections are reset; new ones get an HTTP error as the answer.
    ERROR = "error"
    #: Open connections are reset; on new ones a conditional PUT gets an HTTP error as the answer.
    NO_CONDITIONS = "no-conditions"

    @property
    def is_for_open_connections(self) -> bool:
        """Whether it applies to the connections that are open now, and not to the link."""
        return self in (Mode.HALF_OPEN, Mode.DEAF)

    @property
    def resets(self) -> bool:
        """Whether it starts with a reset of the open connections."""
        return self in (Mode.REFUSE, Mode.ERROR, Mode.NO_CONDITIONS)

    def swallows(self, *, answers: bool) -> bool:
        """Whether data in this direction is swallowed."""
        return self in (Mode.HALF_OPEN, Mode.STALL) or (answers and self is Mode.DEAF)


@dataclass(frozen=True)
class Disturbance:
    """A mode with its parameters."""

    mode: Mode = Mode.PASS
    delay_s: float = 0.0
    #: The HTTP status for `ERROR` and `NO_CONDITIONS`.
    status: int = 503
