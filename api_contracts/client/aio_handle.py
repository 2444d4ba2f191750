"""What an asynchronous caller holds of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api_contracts.client.follow import Following, outcome, unknown_end
from api_contracts.errors import TaskNotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from api_contracts.client.aio_records import AsyncRecords
    from api_contracts.events import Event, TaskStatus
    from api_contracts.pushes import Push, PushKind
    from api_contracts.result import GenerationResult


class AsyncTaskHandle:
    """A task, whether or not it was submitted from here."""

    def __init__(self, records: AsyncRecords, task_id: str) -> None:
        self.task_id = task_id
        self._records = records

    def events(self, after: int = 0, timeout: float | None = None) -> AsyncGenerator[Event]:
        """As `TaskHandle.events`, for `async for`."""
        return self._records.follow(Following(self.task_id, after, timeout, in_all=False))

    async def result(self, timeout: float | None = None) -> GenerationResult:  # noqa: ASYNC109  # as the other client's; a task goes on when its caller stops waiting
        """As `TaskHandle.result`."""
        following = Following(self.task_id, 0, timeout, in_all=True)
        async for event in self._records.follow(following):
            if event.is_terminal:
                return outcome(event)
        raise unknown_end(self.task_id)

    async def status(self) -> TaskStatus:
        """As `TaskHandle.status`."""
        (status,) = await self._records.statuses([self.task_id])
        if status is None:
            raise TaskNotFound(self.task_id)
        return status

    async def cancel(self) -> TaskStatus | None:
        """As `TaskHandle.cancel`."""
        return await self._records.cancel(self.task_id)

    async def pushes(self) -> dict[PushKind, Push]:
        """As `TaskHandle.pushes`."""
        return await self._records.pushes(self.task_id)
