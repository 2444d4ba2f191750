"""How a task's events are followed, apart from how they are read: what to wait for, when to stop.

Both clients' iterators ask it, so that they end, wait and give up alike.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from api_contracts.errors import (
    GenerationCancelled,
    GenerationError,
    GenerationExpired,
    GenerationFailed,
    TaskNotFound,
    WaitTimeout,
)
from api_contracts.events import Cancelled, Expired, Failed, Succeeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from api_contracts.client.records import Numbered
    from api_contracts.events import Event
    from api_contracts.result import GenerationResult

#: Longest wait for an event before the record is asked, in seconds.
BLOCK_S = 5.0
#: First and longest pause between attempts to reach Redis again, in seconds.
RECONNECT_S = (0.05, 2.0)


class Following:
    """Where one iterator stands."""

    def __init__(self, task_id: str, after: int, timeout: float | None, *, in_all: bool) -> None:
        """`timeout` is for each silence, or for all of it when `in_all`."""
        self.task_id, self._timeout, self._in_all = task_id, timeout, in_all
        self.last, self.is_over = after, False
        self._since_s, self._pause_s = time.monotonic(), RECONNECT_S[0]

    @property
    def block_s(self) -> float:
        """How long to wait for the next event."""
        return max(0.0, min(BLOCK_S, self._left_s))

    def pause_s(self) -> float:
        """How long to wait for Redis to come back: longer each time in a row."""
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, RECONNECT_S[1])
        return max(0.0, min(pause_s, self._left_s))

    def found(self, entries: Sequence[Numbered]) -> Iterator[Event]:
        """What to hand on of what was read."""
        self._pause_s = RECONNECT_S[0]
        for seq, event in entries:
            self.last = seq
            if event is not None:
                self.is_over = event.is_terminal
                yield event
                if self.is_over:
                    return
        if entries and not self._in_all:
            self._since_s = time.monotonic()

    def record_says(self, *, told: bool | None) -> None:
        """Nothing came: whether the record says that this was the end; None without a record."""
        if told is None:
            raise TaskNotFound(self.task_id)
        self.is_over = told

    def give_up(self) -> None:
        """Raise `WaitTimeout` when it is time; asked after each wait."""
        if self._timeout is not None and self._left_s <= 0 and not self.is_over:
            what = "did not end within" if self._in_all else "said nothing for"
            raise WaitTimeout(f"task {self.task_id} {what} {self._timeout:g} s")

    @property
    def _left_s(self) -> float:
        if self._timeout is None:
            return float("inf")
        return self._since_s + self._timeout - time.monotonic()


def outcome(event: Event) -> GenerationResult:
    """The result in a terminal event; raises the other ends."""
    match event:
        case Succeeded(result=result):
            return result
        case Failed(error=error):
            raise GenerationFailed.of(error)
        case Cancelled(step=step):
            raise GenerationCancelled.at(step)
        case Expired(step=step):
            raise GenerationExpired.at(step)
    message = f"event {event.type} ends no task"
    raise ValueError(message)


def unknown_end(task_id: str) -> GenerationError:
    """The error of a task whose end is of a kind that this version does not know."""
    return GenerationError(f"task {task_id} has ended in a way that this version does not know")
