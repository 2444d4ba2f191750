"""Returns the messages of exited worker processes to the queue, also while Redis is unreachable."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from api_contracts.redis_io.connection import is_unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

logger = logging.getLogger(__name__)

#: Pause between two attempts while Redis is unreachable, and how long attempts are made, in
#: seconds. Later the messages return when their leases expire.
RETRY_S, GIVE_UP_S = 1.0, 60.0


@dataclass
class _Schedule:
    """When the next attempt is due, and when a failed one is the last, in seconds."""

    due_s: float
    give_up_s: float


class OrphanedWork:
    """The exited processes whose messages are still to be released. Callers pass the time."""

    def __init__(
        self,
        release: Callable[[str], int],
        submit: Callable[[Callable[[str], int], str], Future[int]],
    ) -> None:
        """`submit` runs `release(owner)` in another thread, since Redis may hang.

        `release` returns the number of messages; it raises `RedisError` while Redis is unreachable.
        """
        self._release, self._submit = release, submit
        self._schedules: dict[str, _Schedule] = {}
        self._attempt: tuple[str, Future[int]] | None = None

    @property
    def is_left(self) -> bool:
        """Whether the messages of any process are still to be released."""
        return bool(self._schedules)

    def add(self, owner: str, now_s: float) -> None:
        """Schedule the release of what an exited process held."""
        self._schedules[owner] = _Schedule(now_s, now_s + GIVE_UP_S)

    def step(self, now_s: float, *, retry: bool) -> None:
        """Collect a finished attempt and start the next one that is due; never waits.

        Without `retry` a failed attempt is the last: a stopping supervisor does not wait for Redis.
        """
        if self._attempt is not None and self._attempt[1].done():
            self._collect(*self._attempt, now_s if retry else math.inf)
            self._attempt = None
        due = (owner for owner, each in self._schedules.items() if each.due_s <= now_s)
        if self._attempt is None and (owner := next(due, None)) is not None:
            self._attempt = owner, self._submit(self._release, owner)

    def _collect(self, owner: str, attempt: Future[int], now_s: float) -> None:
        schedule, error = self._schedules[owner], attempt.exception()
        if error is None:
            logger.info("returned %d orphaned messages of %s to the queue", attempt.result(), owner)
        elif isinstance(error, RedisError) and now_s < schedule.give_up_s:
            logger.warning("orphaned messages of %s not returned, retrying: %s", owner, error)
            schedule.due_s = now_s + RETRY_S
            return
        else:
            logger.error(
                "orphaned messages of %s not returned; they return when their leases expire: %s",
                owner, error, exc_info=None if is_unavailable(error) else error,
            )  # fmt: skip
        del self._schedules[owner]
