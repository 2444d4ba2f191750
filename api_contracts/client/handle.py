"""One task from the caller's side: follow it, wait for it, cancel it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from api_contracts.client.follow import Following, outcome, unknown_end
from api_contracts.errors import TaskNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api_contracts.client.records import Records
    from api_contracts.events import Event, TaskStatus
    from api_contracts.pushes import Push, PushKind
    from api_contracts.result import GenerationResult


class TaskHandle:
    """A task by its id, submitted here or elsewhere."""

    def __init__(self, records: Records, task_id: str) -> None:
        self.task_id = task_id
        self._records = records

    def events(self, after: int = 0, timeout: float | None = None) -> Iterator[Event]:
        """Yield every event after number `after`: past ones first, the terminal one last.

        Survives lost connections. Skips event types that this version does not know. Raises
        `TaskNotFound` without a record, `WaitTimeout` when no event came for `timeout` seconds.
        """
        return self._follow(Following(self.task_id, after, timeout))

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait until the task has ended and return its result.

        Raises `GenerationFailed`, `GenerationCancelled` or `GenerationExpired` for the other
        final states, `TaskNotFound` without a record, `WaitTimeout` after `timeout` seconds.
        """
        for event in self._follow(Following(self.task_id, timeout=timeout, whole=True)):
            if event.is_terminal:
                return outcome(event)
        raise unknown_end(self.task_id)

    def status(self) -> TaskStatus:
        """The current status; raises `TaskNotFound` without a record."""
        (status,) = self._records.statuses([self.task_id])
        if status is None:
            raise TaskNotFound(self.task_id)
        return status

    def cancel(self) -> TaskStatus | None:
        """Request cancellation and return the status before it.

        A waiting task ends at once, a running one before its next UNet call; one that has ended
        stays as it is. Without a record (None) the request waits, at most `SAG_RECORD_TTL_S`.
        """
        return self._records.cancel(self.task_id)

    def pushes(self) -> dict[PushKind, Push]:
        """State of `reply_to` and `webhook`; empty until the task has ended, or without either."""
        return self._records.pushes(self.task_id)

    def _follow(self, following: Following) -> Iterator[Event]:
        while not following.is_over:
            try:
                entries = self._records.read(self.task_id, following.last, following.block_s)
                if not entries:
                    following.no_events(ended=self._records.has_ended(self.task_id, following.last))
            except RedisError as error:
                time.sleep(following.pause_s(error))
            else:
                yield from following.accept(entries)
            following.check_timeout()
