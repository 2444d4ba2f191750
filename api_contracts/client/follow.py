"""When to wait, retry and stop while a task's events are read; shared by both clients."""

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
from api_contracts.redis_io.connection import as_service_unavailable, is_unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis.exceptions import RedisError

    from api_contracts.client.records import NumberedEvent
    from api_contracts.events import Event
    from api_contracts.result import GenerationResult

#: Longest wait for an event before the record is checked, in seconds.
BLOCK_S = 5.0
#: First and longest pause between attempts to reach Redis again, in seconds.
RECONNECT_S = (0.05, 2.0)


class Following:
    """State of one iteration over a task's events."""

    def __init__(
        self, task_id: str, after: int = 0, timeout: float | None = None, *, whole: bool = False
    ) -> None:
        """`timeout` limits the time between events, or the whole iteration if `whole`."""
        self.task_id, self._timeout, self._whole = task_id, timeout, whole
        self.last, self.is_over = after, False
        self._since_s, self._pause_s = time.monotonic(), RECONNECT_S[0]

    @property
    def block_s(self) -> float:
        """How long to wait for the next event, in seconds."""
        return max(0.0, min(BLOCK_S, self._left_s))

    def pause_s(self, error: RedisError) -> float:
        """Seconds to wait before the next attempt; raises errors that are not temporary.

        Doubles with each failed attempt in a row.
        """
        if not is_unavailable(error):
            raise as_service_unavailable(error) or error from error
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, RECONNECT_S[1])
        return max(0.0, min(pause_s, self._left_s))

    def accept(self, entries: Sequence[NumberedEvent]) -> Iterator[Event]:
        """Yield the events that were read, up to the terminal one."""
        self._pause_s = RECONNECT_S[0]
        for seq, event in entries:
            self.last = seq
            if event is not None:
                self.is_over = event.is_terminal
                yield event
                if self.is_over:
                    return
        if entries and not self._whole:
            self._since_s = time.monotonic()

    def no_events(self, *, ended: bool | None) -> None:
        """Handle a read without events. `ended` is from the record; None: `TaskNotFound`."""
        if ended is None:
            raise TaskNotFound(self.task_id)
        self.is_over = ended

    def check_timeout(self) -> None:
        """Raise `WaitTimeout` when the time is up."""
        if self._timeout is not None and self._left_s <= 0 and not self.is_over:
            what = "did not end within" if self._whole else "had no event for"
            raise WaitTimeout(f"task {self.task_id} {what} {self._timeout:g} s")

    @property
    def _left_s(self) -> float:
        if self._timeout is None:
            return float("inf")
        return self._since_s + self._timeout - time.monotonic()


def outcome(event: Event) -> GenerationResult:
    """The result in a `succeeded` event; raises the error of the other terminal events."""
    match event:
        case Succeeded(result=result):
            return result
        case Failed(error=error):
            raise GenerationFailed.of(error)
        case Cancelled(step=step):
            raise GenerationCancelled.at(step)
        case Expired(step=step):
            raise GenerationExpired.at(step)
    message = f"event {event.type} is not terminal"
    raise ValueError(message)


def unknown_end(task_id: str) -> GenerationError:
    """The error for a task that ended with an event type that this version does not know."""
    return GenerationError(f"task {task_id} ended with an event that this version does not know")
