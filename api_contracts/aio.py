"""The asynchronous client: `GenerationClient`'s surface for asyncio.

One task of the event loop waits for news of everything that is followed, over one connection:
following a thousand tasks takes no more of them than following one.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self, TypeVar

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, NoScriptError, RedisError

from api_contracts import names, records
from api_contracts.aio_handle import AsyncTaskHandle
from api_contracts.client import Request, check_all, check_ids
from api_contracts.connection import COUNT_S, OPTIONS, REDIS_AWAY, checked_url, unavailable
from api_contracts.ear import Ear
from api_contracts.errors import ServiceUnavailable
from api_contracts.pushes import FIELDS, pushes_of
from api_contracts.queues import depths, lists_of, positions
from api_contracts.scripts import sha, text
from api_contracts.sender import Sender

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

    from api_contracts.events import Event, TaskStatus
    from api_contracts.follow import Following
    from api_contracts.pushes import Push, PushKind
    from api_contracts.request import GenerationRequest

#: Questions to Redis at once, each over a connection; one more connection waits for news.
MAX_CONNECTIONS = 16
#: Least time for Redis to answer a follower, in seconds, however little it wants to wait.
_PATIENCE_S = 1.0

T = TypeVar("T")


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
        self.keys = names.Keys(namespace)
        self.redis = _connect(events_url or broker_url)
        limits = {"socket_timeout": COUNT_S, "socket_connect_timeout": COUNT_S}
        self._broker = _connect(broker_url, **limits)
        self._sender = Sender(broker_url)
        self._ear = Ear(self.redis)
        # Not redis-py's pool that blocks: a caller that is cancelled may take a connection along.
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        #: The same for the broker: while it does not answer, the records still do.
        self._counts = asyncio.Semaphore(MAX_CONNECTIONS)
        self._cancel = self.redis.register_script(text("api_contracts", "cancel"))

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
        tasks = zip(task_ids, requests, places, strict=True)
        calls = [records.submission(self.keys, *task) for task in tasks]
        waiting = records.waiting(task_ids, await self._reach(lambda: self._write(calls)))
        if waiting:
            await asyncio.to_thread(self._sender.send, waiting)
        return [AsyncTaskHandle(self, task_id) for task_id in task_ids]

    async def _write(self, calls: Sequence[records.Call]) -> Any:  # noqa: ANN401  # redis-py's own replies
        pipeline = self.redis.pipeline(transaction=False)
        for keys, args in calls:
            pipeline.evalsha(sha(records.SUBMIT), len(keys), *keys, *args)
        try:
            return await pipeline.execute()
        except NoScriptError:
            await self.redis.script_load(records.SUBMIT)
            return await self._write(calls)

    def handle(self, task_id: str) -> AsyncTaskHandle:
        """The handle of a task that was submitted before, here or elsewhere."""
        (checked_id,) = check_ids([task_id])
        return AsyncTaskHandle(self, checked_id)

    async def status_many(self, task_ids: Iterable[str]) -> dict[str, TaskStatus | None]:
        """As `GenerationClient.status_many`."""
        wanted = check_ids(list(task_ids))
        pipeline = self.redis.pipeline(transaction=False)
        for task_id in wanted:
            pipeline.hget(self.keys.task(task_id), "status")
        found = await self._reach(pipeline.execute)
        return dict(zip(wanted, map(records.status_of, found), strict=True))

    async def queue_depths(self, models: Iterable[str] = (names.DEFAULT_MODEL,)) -> dict[str, int]:
        """As `GenerationClient.queue_depths`."""
        wanted = list(models)
        return depths(wanted, await self._lengths(lists_of(wanted)))

    async def _lengths(self, lists: Sequence[str], *, or_errors: bool = False) -> dict[str, Any]:
        pipeline = self._broker.pipeline(transaction=False)
        for key in lists:
            pipeline.llen(key)
        found = await self._reach(lambda: pipeline.execute(not or_errors), self._counts)
        return dict(zip(lists, found, strict=True))

    async def _lengths_if_known(self, requests: Sequence[GenerationRequest]) -> dict[str, Any]:
        lists = lists_of(request.model for request in requests)
        try:
            return await self._lengths(lists, or_errors=True)
        except ServiceUnavailable:  # which sending will say, once there is a record
            return {}

    async def cancel(self, task_id: str) -> TaskStatus | None:
        """As `TaskHandle.cancel`."""
        key = self.keys.task(task_id)
        request: Any = await self._reach(lambda: self.redis.hget(key, "request"))
        call = records.cancellation(self.keys, task_id, request)
        return records.former_status(await self._reach(lambda: self._cancel(*call)))

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
        reading = asyncio.ensure_future(self._in_turn(lambda: self._read(following)))
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

    async def _reach(
        self, question: Callable[[], Awaitable[Any]], turns: asyncio.Semaphore | None = None
    ) -> Any:  # noqa: ANN401  # redis-py's own replies
        try:
            return await self._in_turn(question, turns)
        except RedisError as error:
            if (told := unavailable(error)) is None:
                raise
            raise told from error

    async def _in_turn(
        self, question: Callable[[], Awaitable[T]], turns: asyncio.Semaphore | None = None
    ) -> T:
        """Ask Redis. A cancel of which asyncio or redis-py took no notice is heard here."""
        was = _cancelling()
        try:
            async with turns or self._turns:
                return await question()
        finally:
            if _cancelling() > was:
                raise asyncio.CancelledError

    async def pushes(self, task_id: str) -> dict[PushKind, Push]:
        """As `TaskHandle.pushes`."""
        task = self.keys.task(task_id)
        reply: Any = await self._reach(lambda: self.redis.hmget(task, *FIELDS))
        return pushes_of(reply)

    async def close(self) -> None:
        """Give the connections back."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, self._sender.close)
            stack.push_async_callback(self._broker.aclose)
            stack.push_async_callback(self.redis.aclose)
            await self._ear.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _cancelling() -> int:
    """How often the running task was asked to end."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _connect(url: str, **limits: float) -> Redis:
    return Redis.from_url(checked_url(url), **{**OPTIONS, **limits})
