"""The asynchronous client: `GenerationClient`'s surface for asyncio."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from api_contracts import names
from api_contracts.client.aio_handle import AsyncTaskHandle
from api_contracts.client.aio_records import AsyncRecords
from api_contracts.client.aio_server import AsyncServer
from api_contracts.client.client import Request, check_all, check_ids
from api_contracts.client.queues import depths, lists_of, positions
from api_contracts.client.sender import Sender
from api_contracts.errors import ServiceUnavailable
from api_contracts.redis_io.connection import COUNT_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from api_contracts.events import TaskStatus
    from api_contracts.request import GenerationRequest


class AsyncGenerationClient:
    """Submits to the workers that share a broker and a namespace, in one event loop."""

    def __init__(
        self,
        broker_url: str,
        namespace: str = names.DEFAULT_NAMESPACE,
        *,
        events_url: str | None = None,
    ) -> None:
        """Connect to nothing yet; `events_url` is the broker's unless the workers differ."""
        self._records = AsyncRecords(events_url or broker_url, namespace)
        self.keys, self.redis = self._records.keys, self._records.redis
        self._broker = AsyncServer(broker_url, COUNT_S)
        self._sender = Sender(broker_url)

    async def submit(self, request: Request, task_id: str | None = None) -> AsyncTaskHandle:
        """As `GenerationClient.submit`."""
        (checked,) = check_all([request])
        (checked_id,) = check_ids([task_id])
        return (await self._submit([checked], [checked_id]))[0]

    async def submit_many(
        self, requests: Sequence[Request], task_ids: Sequence[str] | None = None
    ) -> list[AsyncTaskHandle]:
        """As `GenerationClient.submit_many`."""
        checked = check_all(requests, numbered=len(requests) > 1)
        ids = check_ids([None] * len(checked) if task_ids is None else task_ids, len(checked))
        return await self._submit(checked, ids)

    async def _submit(
        self, requests: Sequence[GenerationRequest], task_ids: Sequence[str]
    ) -> list[AsyncTaskHandle]:
        places = positions(requests, await self._lengths_if_known(requests))
        waiting = await self._records.submit(list(zip(task_ids, requests, places, strict=True)))
        if waiting:
            await asyncio.to_thread(self._sender.send, waiting)
        return [AsyncTaskHandle(self._records, task_id) for task_id in task_ids]

    def handle(self, task_id: str) -> AsyncTaskHandle:
        """The handle of a task that was submitted before, here or elsewhere."""
        (checked_id,) = check_ids([task_id])
        return AsyncTaskHandle(self._records, checked_id)

    async def status_many(self, task_ids: Iterable[str]) -> dict[str, TaskStatus | None]:
        """As `GenerationClient.status_many`."""
        wanted = check_ids(list(task_ids))
        return dict(zip(wanted, await self._records.statuses(wanted), strict=True))

    async def queue_depths(self, models: Iterable[str] = (names.DEFAULT_MODEL,)) -> dict[str, int]:
        """As `GenerationClient.queue_depths`."""
        wanted = list(models)
        return depths(wanted, await self._lengths(lists_of(wanted)))

    async def _lengths(self, lists: Sequence[str], *, or_errors: bool = False) -> dict[str, Any]:
        pipeline = self._broker.redis.pipeline(transaction=False)
        for key in lists:
            pipeline.llen(key)
        found = await self._broker.reach(lambda: pipeline.execute(not or_errors))
        return dict(zip(lists, found, strict=True))

    async def _lengths_if_known(self, requests: Sequence[GenerationRequest]) -> dict[str, Any]:
        lists = lists_of(request.model for request in requests)
        try:
            return await self._lengths(lists, or_errors=True)
        except ServiceUnavailable:  # which sending will say, once there is a record
            return {}

    async def close(self) -> None:
        """Give the connections back."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, self._sender.close)
            stack.push_async_callback(self._broker.redis.aclose)
            await self._records.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
