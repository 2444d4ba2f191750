"""The asyncio version of `client` and `handle`: the same methods, arguments and errors."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from redis.exceptions import RedisError

from api_contracts import names
from api_contracts.client import queues
from api_contracts.client.aio_records import AsyncRecords, AsyncServer
from api_contracts.client.client import Request, check_ids, check_submissions
from api_contracts.client.follow import Following, outcome, unknown_end
from api_contracts.client.records import Submission, service_errors
from api_contracts.client.sender import send_async
from api_contracts.client.tracing import submit_span
from api_contracts.errors import TaskNotFound
from api_contracts.redis_io.connection import COUNT_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from api_contracts.events import Event, TaskStatus
    from api_contracts.pushes import Push, PushKind
    from api_contracts.request import GenerationRequest
    from api_contracts.result import GenerationResult


class AsyncGenerationClient:
    """Submits to the workers that share a broker and a namespace, in one event loop."""

    def __init__(
        self,
        broker_url: str,
        namespace: str = names.DEFAULT_NAMESPACE,
        *,
        events_url: str | None = None,
    ) -> None:
        """Connects on first use. `events_url` is the workers' `SAG_EVENTS_URL`, if they set it."""
        self._records = AsyncRecords(events_url or broker_url, namespace)
        self.keys, self.redis = self._records.keys, self._records.redis
        self._broker = AsyncServer(broker_url)
        self._counter = AsyncServer(broker_url, COUNT_S)

    async def submit(self, request: Request, task_id: str | None = None) -> AsyncTaskHandle:
        """As `GenerationClient.submit`."""
        return (await self.submit_many([request], None if task_id is None else [task_id]))[0]

    async def submit_many(
        self, requests: Sequence[Request], task_ids: Sequence[str] | None = None
    ) -> list[AsyncTaskHandle]:
        """As `GenerationClient.submit_many`."""
        checked, ids = check_submissions(requests, task_ids)
        with submit_span(checked, ids) as traced:
            positions = queues.positions(traced, await self._lengths_if_known(traced))
            tasks = list(map(Submission.of, ids, traced, positions))
            waiting = await self._records.submit(tasks)
            with service_errors():
                await self._broker.call(lambda: send_async(self._broker.redis, waiting))
        return [AsyncTaskHandle(self._records, each) for each in ids]

    def handle(self, task_id: str) -> AsyncTaskHandle:
        """As `GenerationClient.handle`; not a coroutine."""
        return AsyncTaskHandle(self._records, *check_ids([task_id]))

    async def status_many(self, task_ids: Iterable[str]) -> dict[str, TaskStatus | None]:
        """As `GenerationClient.status_many`."""
        ids = check_ids(list(task_ids))
        return dict(zip(ids, await self._records.statuses(ids), strict=True))

    async def queue_depths(self, models: Iterable[str] = (names.DEFAULT_MODEL,)) -> dict[str, int]:
        """As `GenerationClient.queue_depths`."""
        wanted = list(models)
        pipeline = queues.length_pipeline(self._counter.redis, wanted)
        with service_errors():
            return queues.depths(wanted, await self._counter.call(pipeline.execute))

    async def _lengths_if_known(self, requests: Sequence[GenerationRequest]) -> list[object]:
        pipeline = queues.length_pipeline(self._counter.redis, (each.model for each in requests))
        try:
            lengths: list[object] = await self._counter.call(
                lambda: pipeline.execute(raise_on_error=False)
            )
        except RedisError:  # sending fails, too, and reports it once there is a record
            return []
        return lengths

    async def close(self) -> None:
        """Close the connections."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._counter.redis.aclose)
            stack.push_async_callback(self._broker.redis.aclose)
            await self._records.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncTaskHandle:
    """A task by its id, submitted here or elsewhere."""

    def __init__(self, records: AsyncRecords, task_id: str) -> None:
        self.task_id = task_id
        self._records = records

    def events(self, after: int = 0, timeout: float | None = None) -> AsyncGenerator[Event]:
        """As `TaskHandle.events`, for `async for`."""
        return self._records.follow(Following(self.task_id, after, timeout))

    async def result(self, timeout: float | None = None) -> GenerationResult:  # noqa: ASYNC109  # the signature of `TaskHandle`; the task itself goes on after a timeout
        """As `TaskHandle.result`."""
        following = Following(self.task_id, timeout=timeout, whole=True)
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
