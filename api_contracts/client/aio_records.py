"""The caller's half of a task's record for asyncio: what `Records` is to the other client.

One task of the event loop waits for news of everything that is followed, over one connection:
following a thousand tasks takes no more of them than following one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, NoScriptError

from api_contracts.client import records
from api_contracts.client.aio_server import AsyncServer
from api_contracts.client.stream_watcher import StreamWatcher
from api_contracts.names import Keys
from api_contracts.pushes import FIELDS, Push, PushKind, pushes_of
from api_contracts.redis_io.connection import REDIS_AWAY, unavailable
from api_contracts.redis_io.scripts import load

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from api_contracts.client.follow import Following
    from api_contracts.events import Event, TaskStatus
    from api_contracts.request import GenerationRequest

#: Least time for Redis to answer a follower, in seconds, however little it wants to wait.
_PATIENCE_S = 1.0


class AsyncRecords:
    """Reads and writes records; every method but `follow` raises as those of `Records`."""

    def __init__(self, url: str, namespace: str) -> None:
        """Raises ValueError for what is no URL."""
        self.keys, self._server = Keys(namespace), AsyncServer(url)
        self.redis, self._ear = self._server.redis, StreamWatcher(self._server.redis)
        self._cancel = load(self.redis, "api_contracts.redis_io", "cancel")

    async def submit(
        self, tasks: Sequence[tuple[str, GenerationRequest, int | None]]
    ) -> list[tuple[str, GenerationRequest]]:
        """As `Records.submit`."""
        calls = [records.submission(self.keys, *task) for task in tasks]
        replies = await self._server.reach(lambda: self._write(calls))
        return records.waiting([task_id for task_id, *_ in tasks], replies)

    async def _write(self, calls: Sequence[list[Any]]) -> Any:  # noqa: ANN401  # redis-py's own replies
        pipeline = self.redis.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(*call)
        try:
            return await pipeline.execute()
        except NoScriptError:
            await self.redis.script_load(records.SUBMIT.source)
            return await self._write(calls)

    async def cancel(self, task_id: str) -> TaskStatus | None:
        """As `Records.cancel`."""
        key = self.keys.task(task_id)
        request: Any = await self._server.reach(lambda: self.redis.hget(key, "request"))
        call = records.cancellation(self.keys, task_id, request)
        return records.former_status(await self._server.reach(lambda: self._cancel(**call)))

    async def statuses(self, task_ids: Sequence[str]) -> list[TaskStatus | None]:
        """As `Records.statuses`."""
        pipeline = self.redis.pipeline(transaction=False)
        for task_id in task_ids:
            pipeline.hget(self.keys.task(task_id), "status")
        return [records.status_of(each) for each in await self._server.reach(pipeline.execute)]

    async def pushes(self, task_id: str) -> dict[PushKind, Push]:
        """As `Records.pushes`."""
        task = self.keys.task(task_id)
        reply: Any = await self._server.reach(lambda: self.redis.hmget(task, *FIELDS))
        return pushes_of(reply)

    async def follow(self, following: Following) -> AsyncGenerator[Event]:
        """The events of one task; see `AsyncTaskHandle.events`."""
        stream = self.keys.events(following.task_id)
        while True:
            try:
                entries = await self._read_in_time(following)
            except (*REDIS_AWAY, TimeoutError):
                await asyncio.sleep(following.pause_s())
                following.give_up()
                continue
            except NoPermissionError as error:
                raise unavailable(error) or error from error
            for event in following.found(entries):
                yield event
            if following.is_over:
                return
            following.give_up()
            await self._ear.wait(stream, following.last, following.block_s)

    async def _read_in_time(self, following: Following) -> list[records.Numbered]:
        """As `_read`, for no longer than it is worth; what redis-py does not let go is left."""
        reading = asyncio.ensure_future(self._server.ask(lambda: self._read(following)))
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            longest_s = max(following.block_s, _PATIENCE_S)
            done, _ = await asyncio.wait([reading], timeout=longest_s)
        finally:
            reading.cancel()
        if not done:
            raise TimeoutError
        return reading.result()

    async def _read(self, following: Following) -> list[records.Numbered]:
        stream, task = self.keys.events(following.task_id), self.keys.task(following.task_id)
        reply: Any = await self.redis.xread({stream: f"{following.last}-0"}, count=records.MOST)
        if not (entries := records.numbered(reply)):
            told: Any = await self.redis.hmget(task, "status", "seq")
            following.record_says(told=records.was_the_end(told, following.last))
        return entries

    async def close(self) -> None:
        """Give the connections back; who waits for news hears of it."""
        try:
            await self._ear.close()
        finally:
            await self.redis.aclose()
