"""Looks for messages while this process waits for some. One daemon thread.

Clients of this project wake a worker when they have sent a message. Plain Celery does not, a client
may die before it does, and a woken worker may die. So every worker that waits looks at its lists,
the more seldom the more workers wait: together they find a message as fast as one alone.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING, Any

from api_contracts.names import WAKE_PREFIX, is_urgent, ready_key, wake_below
from api_contracts.redis_io.scripts import load
from worker.background import BackgroundThread, log_error
from worker.broker.intake import ready_below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from worker.broker.intake import WaitingList

logger = logging.getLogger(__name__)

#: Time between two looks of all workers that wait, in seconds, and the longest between two of one.
LOOK_PERIOD_S, MAX_LOOK_PERIOD_S = 0.015, 2.0
#: The first for workers that wait for urgent messages only: a UNet call of the tasks that they run
#: takes longer, and each look costs 0.3 ms of the processor.
URGENT_LOOK_PERIOD_S = 0.1
#: How long the thread sleeps before it checks whether to stop, in seconds.
STOP_CHECK_S = 1.0


class WaitState:
    """Whether the consumer waits for a message, and for which ones. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lists: Sequence[WaitingList] = ()
        #: How many workers wait for what this one takes, this one included.
        self.ready = 1

    def begin(self, lists: Sequence[WaitingList]) -> None:
        """The consumer waits for a message in one of these lists."""
        with self._changed:
            self._lists = lists
            self._changed.notify_all()

    def end(self) -> None:
        """The consumer waits no more."""
        with self._changed:
            self._lists = ()

    def lists(self, timeout_s: float) -> Sequence[WaitingList]:
        """The lists it waits for; after `timeout_s` maybe none."""
        with self._changed:
            self._changed.wait_for(lambda: self._lists, timeout_s)
            return self._lists

    @property
    def period_s(self) -> float:
        """Time between two looks of this worker."""
        urgent_only = bool(self._lists) and is_urgent(self._lists[-1].priority)
        look_s = URGENT_LOOK_PERIOD_S if urgent_only else LOOK_PERIOD_S
        return min(look_s * max(1, self.ready), MAX_LOOK_PERIOD_S)

    def __json__(self) -> bool:
        """Whether it waits, for `inspect stats`, which shows all transport options."""
        return bool(self._lists)


class QueueWatch:
    """Wakes a ready worker, of whichever process, when messages wait."""

    def __init__(self, redis: Redis, state: WaitState, owner: str) -> None:
        """`redis` is the broker; `owner` names this process."""
        self._redis, self._state, self._owner = redis, state, owner
        self._wake = load(redis, "api_contracts.redis_io", "wake")
        self._looks = 0
        #: Whether the last look found messages.
        self._found = False
        self._thread = BackgroundThread("queue-watch", self._round, self._on_error, retry_pause_s=1)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, without waiting for it."""
        self._thread.stop()

    def _round(self) -> None:
        if not self._state.lists(STOP_CHECK_S):
            return
        self._thread.pause(self._state.period_s * random.uniform(0.8, 1.2))  # noqa: S311  # no secret
        if lists := self._state.lists(0):
            self.look(lists)

    def look(self, lists: Sequence[WaitingList]) -> None:
        """Wake workers if messages wait in the lists; count the ready ones at every fourth look."""
        self._looks += 1
        had_found, self._found = (
            self._found,
            bool(self._redis.exists(*(each.name for each in lists))),
        )
        if self._found:
            self.wake(lists, itself=had_found)
        elif self._looks % 4 == 0:
            self._state.ready = min(
                int(self._redis.zcount(ready_key(queue), 0, f"({ready_below(lists)}"))
                for queue in {each.queue for each in lists}
            )

    def wake(self, lists: Sequence[WaitingList], *, itself: bool = False) -> None:
        """Wake as many ready workers as messages wait in the lists.

        This one, too, if none is ready, or by `itself`: those that were woken before may be dead.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for each in lists:
            pipeline.llen(each.name)
        woken = 0
        lengths: list[Any] = pipeline.execute(raise_on_error=False)
        for (_, queue, priority), length in zip(lists, lengths, strict=True):
            if isinstance(length, int) and length:
                below = wake_below(urgent=is_urgent(priority))
                woken += self._wake(ready=ready_key(queue), number=length, below=below)
        if (
            itself or not woken
        ):  # Redis lost the set of ready workers, or what woke this one was lost
            self._redis.lpush(f"{WAKE_PREFIX}{self._owner}", 1)

    def _on_error(self, error: Exception) -> None:
        log_error(logger, "not looked for messages", error)
