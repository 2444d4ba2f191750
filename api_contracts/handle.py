"""One task from its caller's side: follow it, wait for it, cancel it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import NoPermissionError

from api_contracts.connection import REDIS_AWAY, unavailable
from api_contracts.errors import (
    GenerationCancelled,
    GenerationError,
    GenerationExpired,
    GenerationFailed,
    TaskNotFound,
    WaitTimeout,
)
from api_contracts.events import Cancelled, Event, Expired, Failed, Succeeded, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api_contracts.records import Records
    from api_contracts.result import GenerationResult

#: Longest wait inside Redis before the client looks up again.
_BLOCK_S = 5.0
#: First and longest pause between attempts to reach Redis again.
_RECONNECT_S = (0.05, 2.0)


class TaskHandle:
    """A task, whether or not it was submitted from here."""

    def __init__(self, records: Records, task_id: str) -> None:
        self.task_id = task_id
        self._records = records

    def events(self, after: int = 0, timeout: float | None = None) -> Iterator[Event]:
        """Every event from number `after` + 1 on, past ones first, the terminal one last.

        Goes on through lost connections. Raises `TaskNotFound` without a record, `WaitTimeout`
        when nothing new came for `timeout` seconds. Events of kinds that this version does not
        know are skipped.
        """
        return self._follow(after, timeout, in_all=False)

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the end and give the result.

        Raises `GenerationFailed`, `GenerationCancelled` or `GenerationExpired` for the other
        ends, `WaitTimeout` after `timeout` seconds.
        """
        for event in self._follow(0, timeout, in_all=True):
            if event.is_terminal:
                return outcome(event)
        message = f"task {self.task_id} has ended in a way that this version does not know"
        raise GenerationError(message)

    def status(self) -> TaskStatus:
        """Where the task is now; raises `TaskNotFound` without a record."""
        (status,) = self._records.statuses([self.task_id])
        if status is None:
            raise TaskNotFound(self.task_id)
        return status

    def cancel(self) -> TaskStatus | None:
        """Ask for the task to end, and give the status that it had.

        A waiting task ends at once, a running one before its next UNet call; one that has ended
        stays as it is. For an id without a record (None) the wish is kept for when it turns up.
        """
        return self._records.cancel(self.task_id)

    def _follow(self, after: int, timeout: float | None, *, in_all: bool) -> Iterator[Event]:
        """The events; `timeout` is for each silence, or for all of it when `in_all`."""
        last, since_s, pause_s = after, time.monotonic(), _RECONNECT_S[0]
        while True:
            left_s = _BLOCK_S if timeout is None else since_s + timeout - time.monotonic()
            try:
                entries = self._read(last, max(0.0, min(_BLOCK_S, left_s)))
                if entries is None:
                    return
                pause_s = _RECONNECT_S[0]
            except REDIS_AWAY:
                time.sleep(min(pause_s, max(left_s, 0)))
                pause_s = min(pause_s * 2, _RECONNECT_S[1])
                entries = []
            except NoPermissionError as error:
                raise unavailable(error) or error from error
            for seq, event in entries:
                last = seq
                if event is not None:
                    yield event
                    if event.is_terminal:
                        return
            now_s = time.monotonic()
            if entries and not in_all:
                since_s = now_s
            if timeout is not None and now_s - since_s >= timeout:
                what = "did not end within" if in_all else "said nothing for"
                message = f"task {self.task_id} {what} {timeout:g} s"
                raise WaitTimeout(message)

    def _read(self, last: int, block_s: float) -> list[tuple[int, Event | None]] | None:
        """What came after event `last`; None when that was the end."""
        entries = self._records.read(self.task_id, last, block_s)
        if entries:
            return entries
        told = self._records.is_told(self.task_id, last)
        if told is None:
            raise TaskNotFound(self.task_id)
        return None if told else []


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
