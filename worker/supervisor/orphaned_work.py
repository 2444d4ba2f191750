"""What worker processes that ended held of the queue, until it is back in its lists."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from api_contracts.redis_io.connection import is_away

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

logger = logging.getLogger(__name__)

#: Pause between two tries while Redis is away, and how long it is tried, in seconds.
PAUSE_S, PATIENCE_S = 1.0, 60.0


@dataclass
class _Orphan:
    """When the next try may be, and after which moment a failed one was the last, in seconds."""

    due_s: float
    until_s: float


class Orphans:
    """The owners whose messages are to be given back, one after the other. Time is passed in."""

    def __init__(
        self,
        give_back: Callable[[str], int],
        submit: Callable[[Callable[[str], int], str], Future[int]],
    ) -> None:
        """`give_back` is called through `submit`, beside the supervisor: Redis may hang.

        It raises `RedisError` while Redis is away.
        """
        self._give_back, self._submit = give_back, submit
        self._waiting: dict[str, _Orphan] = {}
        self._try: tuple[str, Future[int]] | None = None

    @property
    def are_left(self) -> bool:
        """Whether anything is still to be done."""
        return bool(self._waiting)

    def add(self, owner: str, now_s: float) -> None:
        """A process has ended."""
        self._waiting[owner] = _Orphan(now_s, now_s + PATIENCE_S)

    def step(self, now_s: float, *, patient: bool) -> None:
        """Take in what was tried, and try what is due; never waits.

        `patient`: what failed is tried again. The supervisor that leaves is not.
        """
        if self._try is not None and self._try[1].done():
            self._settle(*self._try, now_s if patient else math.inf)
            self._try = None
        due = (owner for owner, orphan in self._waiting.items() if orphan.due_s <= now_s)
        if self._try is None and (owner := next(due, None)) is not None:
            self._try = owner, self._submit(self._give_back, owner)

    def _settle(self, owner: str, tried: Future[int], now_s: float) -> None:
        orphan, error = self._waiting[owner], tried.exception()
        if error is None:
            logger.info("gave back %d messages of %s", tried.result(), owner)
        elif isinstance(error, RedisError) and now_s < orphan.until_s:
            logger.warning("messages of %s can't be given back yet: %s", owner, error)
            orphan.due_s = now_s + PAUSE_S
            return
        else:
            away = is_away(error)
            logger.error(
                "messages of %s come back by their leases alone: %s",
                owner, error, exc_info=None if away else error,
            )  # fmt: skip
        del self._waiting[owner]
