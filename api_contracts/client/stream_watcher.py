"""Waits for new entries in many Redis streams over one connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from redis.asyncio import Redis

#: Length of one blocking read, in seconds. Newly followed streams are included within this time.
_BLOCK_S = 0.1


class StreamWatcher:
    """Wakes the coroutines that wait for a stream; they read the entries themselves."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiters: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self, stream: str, after: int, timeout_s: float) -> None:
        """Return when `stream` has an entry after number `after`, or after `timeout_s`."""
        if self._closed:
            message = "the client is closed"
            raise RuntimeError(message)
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = stream, after
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:  # not `wait_for`, which in Python 3.11 may lose a cancellation
            await asyncio.wait([waiter], timeout=timeout_s)
        finally:
            self._waiters.pop(waiter, None)

    async def close(self) -> None:
        """Stop watching; calls to `wait` return, and later ones raise RuntimeError."""
        self._closed = True
        self._wake({stream for stream, _ in self._waiters.values()})
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        """Read from all streams at once until there are no waiters."""
        while self._waiters:
            last: dict[str, int] = {}
            for stream, after in self._waiters.values():
                last[stream] = min(after, last.get(stream, after))
            streams: Any = {stream: f"{after}-0" for stream, after in last.items()}
            try:
                reply: Any = await self._redis.xread(streams, 1, block=int(_BLOCK_S * 1000))
            except RedisError:
                self._wake(set(last))  # each then reads, and handles the error itself
                await asyncio.sleep(_BLOCK_S)
            else:
                self._wake({stream.decode() for stream, _ in reply})

    def _wake(self, streams: set[str]) -> None:
        for waiter, (stream, _) in list(self._waiters.items()):
            if stream in streams:
                del self._waiters[waiter]
                if not waiter.done():
                    waiter.set_result(None)
