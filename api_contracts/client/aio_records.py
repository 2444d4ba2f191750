"""The asyncio version of `records`.

One task of the event loop waits for new events of everything that is followed, over one
connection: following a thousand tasks takes no more connections than following one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api_contracts.client import records
from api_contracts.client.records import service_errors
from api_contracts.client.stream_watcher import StreamWatcher
from api_contracts.names import Keys
from api_contracts.pushes import FIELDS, Push, PushKind, pushes_of
from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.aio_pools import client_of
from api_contracts.redis_io.connection import connection_options
from api_contracts.redis_io.scripts import load

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from api_contracts.client.follow import Following
    from api_contracts.client.sender import Waiting
    from api_contracts.events import Event, TaskStatus

#: Most calls at once, each over a connection of its own.
MAX_CONNECTIONS = 16
#: Least time for Redis to answer a read of events, in seconds, however soon the wait ends.
_MIN_READ_S = 1.0

T = TypeVar("T")


class AsyncServer:
    """A Redis with a limit on concurrent calls. Connects on first use."""

    def __init__(self, url: str, answer_s: float | None = None) -> None:
        """`answer_s` is the longest wait for an answer, instead of the usual one.

        Raises ValueError for an invalid URL.
        """
        address = RedisAddress.parse(url)
        self.redis = client_of(address, connection_options(address, answer_s))
        # Not redis-py's blocking pool: a cancelled caller may take a connection with it.
        self._limit = asyncio.Semaphore(MAX_CONNECTIONS)

    async def call(self, command: Callable[[], Awaitable[T]]) -> T:
        """Await `command()`; raises a cancellation that asyncio or redis-py swallowed."""
        before = _cancel_requests()
        try:
            async with self._limit:
                return await command()
        finally:
            if _cancel_requests() > before:
                raise asyncio.CancelledError


class AsyncRecords:
    """Reads and writes records; its methods raise the errors of the same methods of `Records`."""

    def __init__(self, url: str, namespace: str) -> None:
        """Raises ValueError for an invalid URL."""
        self.keys, self._server = Keys(namespace), AsyncServer(url)
        self.redis, self._watcher = self._server.redis, StreamWatcher(self._server.redis)
        self._cancel = load(self.redis, "api_contracts.redis_io", "cancel")

    async def submit(self, tasks: Sequence[records.Submission]) -> list[Waiting]:
        """As `Records.submit`."""
        with service_errors():
            return records.to_send(tasks, await self._server.call(lambda: self._write(tasks)))

    async def _write(self, tasks: Sequence[records.Submission]) -> Any:  # noqa: ANN401  # redis-py's replies
        try:
            return await records.submit_pipeline(self.redis, self.keys, tasks).execute()
        except NoScriptError:
            await self.redis.script_load(records.SUBMIT.source)
            return await self._write(tasks)

    async def cancel(self, task_id: str) -> TaskStatus | None:
        """As `Records.cancel`."""
        with service_errors():
            return records.status_of(await self._server.call(lambda: self._cancelled(task_id)))

    async def _cancelled(self, task_id: str) -> bytes:
        request: Any = await self.redis.hget(self.keys.task(task_id), "request")
        reply: bytes = await self._cancel(**records.cancel_call(self.keys, task_id, request))
        return reply

    async def statuses(self, task_ids: Sequence[str]) -> list[TaskStatus | None]:
        """As `Records.statuses`."""
        pipeline = records.status_pipeline(self.redis, self.keys, task_ids)
        with service_errors():
            return list(map(records.status_of, await self._server.call(pipeline.execute)))

    async def pushes(self, task_id: str) -> dict[PushKind, Push]:
        """As `Records.pushes`."""
        task = self.keys.task(task_id)
        with service_errors():
            reply: Any = await self._server.call(lambda: self.redis.hmget(task, FIELDS))
        return pushes_of(reply)

    async def follow(self, following: Following) -> AsyncGenerator[Event]:
        """The events of one task; see `AsyncTaskHandle.events`."""
        stream = self.keys.events(following.task_id)
        while True:
            try:
                entries = await self._read_in_time(following)
            except RedisError as error:
                await asyncio.sleep(following.pause_s(error))
                following.check_timeout()
                continue
            for event in following.accept(entries):
                yield event
            if following.is_over:
                return
            following.check_timeout()
            await self._watcher.wait(stream, following.last, following.block_s)

    async def _read_in_time(self, following: Following) -> list[records.NumberedEvent]:
        """`_read` with a time limit; a read that redis-py does not cancel in time is abandoned."""
        reading = asyncio.ensure_future(self._server.call(lambda: self._read(following)))
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            done, _ = await asyncio.wait([reading], timeout=max(following.block_s, _MIN_READ_S))
        finally:
            reading.cancel()
        if not done:
            raise RedisTimeoutError
        return reading.result()

    async def _read(self, following: Following) -> list[records.NumberedEvent]:
        stream, task = self.keys.events(following.task_id), self.keys.task(following.task_id)
        reply = await self.redis.xread({stream: f"{following.last}-0"}, records.READ_LIMIT)
        if not (entries := records.numbered(reply)):
            state: Any = await self.redis.hmget(task, records.END_FIELDS)
            following.no_events(ended=records.was_terminal(state, following.last))
        return entries

    async def close(self) -> None:
        """Close the connections; iterations over events raise RuntimeError."""
        try:
            await self._watcher.close()
        finally:
            await self.redis.aclose()


def _cancel_requests() -> int:
    """How many cancellations of the running task were requested."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
