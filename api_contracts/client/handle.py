"""One task from its caller's side: follow it, wait for it, cancel it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import NoPermissionError

from api_contracts.client.follow import Following, outcome, unknown_end
from api_contracts.errors import TaskNotFound
from api_contracts.redis_io.connection import REDIS_AWAY, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api_contracts.client.records import Records
    from api_contracts.events import Event, TaskStatus
    from api_contracts.pushes import Push, PushKind
    from api_contracts.result import GenerationResult


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
        return self._follow(Following(self.task_id, after, timeout, in_all=False))

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the end and give the result.

        Raises `GenerationFailed`, `GenerationCancelled` or `GenerationExpired` for the other
        ends, `WaitTimeout` after `timeout` seconds.
        """
        for event in self._follow(Following(self.task_id, 0, timeout, in_all=True)):
            if event.is_terminal:
                return outcome(event)
        raise unknown_end(self.task_id)

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

    def pushes(self) -> dict[PushKind, Push]:
        """How far `reply_to` and `webhook` have come; empty before the end, or without them."""
        return self._records.pushes(self.task_id)

    def _follow(self, following: Following) -> Iterator[Event]:
        while not following.is_over:
            try:
                entries = self._records.read(self.task_id, following.last, following.block_s)
                if not entries:
                    told = self._records.is_told(self.task_id, following.last)
                    following.record_says(told=told)
            except REDIS_AWAY:
                time.sleep(following.pause_s())
            except NoPermissionError as error:
                raise unavailable(error) or error from error
            else:
                yield from following.found(entries)
            following.give_up()
