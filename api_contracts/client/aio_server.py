"""A Redis that is asked from one event loop, in turns and not for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api_contracts.redis_io.connection import OPTIONS, checked_url, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Questions at once, each over a connection.
MAX_CONNECTIONS = 16

T = TypeVar("T")


class AsyncServer:
    """Connects on first use; raises ValueError for what is no URL."""

    def __init__(self, url: str, answer_s: float | None = None) -> None:
        """`answer_s` is how long an answer may take, where that is less than usual."""
        limits = {"socket_timeout": answer_s, "socket_connect_timeout": answer_s}
        self.redis = Redis.from_url(checked_url(url), **{**OPTIONS, **(limits if answer_s else {})})
        # Not redis-py's pool that blocks: a caller that is cancelled may take a connection along.
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)

    async def reach(self, question: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401  # redis-py's own replies
        """Ask; raises `ServiceUnavailable` when Redis is away or refuses this user."""
        try:
            return await self.ask(question)
        except RedisError as error:
            if (told := unavailable(error)) is None:
                raise
            raise told from error

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask; a cancel of which asyncio or redis-py took no notice is heard here."""
        was = _cancelling()
        try:
            async with self._turns:
                return await question()
        finally:
            if _cancelling() > was:
                raise asyncio.CancelledError


def _cancelling() -> int:
    """How often the running task was asked to end."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
