"""News of many streams over one connection, for the asynchronous client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from redis.asyncio import Redis

#: How long one wait for news lasts, in seconds: so late is heard of a task that was added to those
#: that are followed.
_LISTEN_S = 0.1


class StreamWatcher:
    """Says when there is news in one of many streams; what it is, whoever asked reads."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self, stream: str, after: int, longest_s: float) -> None:
        """Return when `stream` has an entry after number `after`, or when it is time."""
        if self._closed:
            message = "the client is closed"
            raise RuntimeError(message)
        news = asyncio.get_running_loop().create_future()
        self._asked[news] = stream, after
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen())
        try:  # not `wait_for`, which in Python 3.11 may lose a cancel
            await asyncio.wait([news], timeout=longest_s)
        finally:
            self._asked.pop(news, None)

    async def close(self) -> None:
        """Listen no more; those who wait are told that the client is closed."""
        self._closed = True
        self._wake({stream for stream, _ in self._asked.values()})
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self) -> None:
        """Wait for all of them at once; end when nobody asks."""
        while self._asked:
            last: dict[str, int] = {}
            for stream, after in self._asked.values():
                last[stream] = min(after, last.get(stream, after))
            streams: Any = {stream: f"{after}-0" for stream, after in last.items()}
            try:
                reply: Any = await self._redis.xread(streams, 1, block=int(_LISTEN_S * 1000))
            except RedisError:
                self._wake(set(last))  # each finds out by itself, and waits by itself
                await asyncio.sleep(_LISTEN_S)
            else:
                self._wake({stream.decode() for stream, _ in reply})

    def _wake(self, streams: set[str]) -> None:
        for news, (stream, _) in list(self._asked.items()):
            if stream in streams:
                del self._asked[news]
                if not news.done():
                    news.set_result(None)
