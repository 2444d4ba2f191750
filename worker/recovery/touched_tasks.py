"""Open tasks that were written recently, as the elected reconciler sees them.

What is left to do for a task follows from a write to it, so only tasks that were written since the
last round are read, however many wait. A new reconciler reads all of them once.
"""

from __future__ import annotations

import heapq
import logging
from typing import TYPE_CHECKING, Any

from api_contracts.client.records import metadata_of
from api_contracts.redis_io.scripts import event_tail, load
from worker.recovery.quarantine import quarantine

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.push_queue import PushQueue

logger = logging.getLogger(__name__)

#: Tasks read by one call.
SLICE = 500


class TouchedTasks:
    """Ends waiting tasks past their deadline; queues the pushes of those that ended while waiting.

    Raises redis-py's exceptions.
    """

    def __init__(self, redis: Redis, keys: Keys, pushes: PushQueue) -> None:
        """`redis` has the records."""
        self._redis, self._keys, self._pushes = redis, keys, pushes
        self._touched, self._expire = (
            load(redis, "worker.record", name) for name in ("touched", "expire")
        )
        #: Whether more tasks were written than the last call read.
        self.is_behind = False
        self._since: bytes | float = 0.0
        self._count = SLICE
        #: Deadlines of waiting tasks, in Unix seconds, and their ids.
        self._deadlines: list[tuple[float, str]] = []

    def read(self) -> int:
        """Read a slice of the tasks that were written since the last one; returns their number."""
        before, _, behind = self._keys.task("\n").partition("\n")
        number, first, self._since, *found = self._touched(
            open=self._keys.open, since=self._since, count=self._count,
            before=before, behind=behind,
        )  # fmt: skip
        self.is_behind = number == self._count
        # All with one score: the next slice begins with the same tasks, so it must be larger.
        is_stuck = self.is_behind and first == self._since
        self._count = 2 * self._count if is_stuck else SLICE
        for member, deadline in zip(found[::2], found[1::2], strict=True):
            task_id = member.decode(errors="replace")
            if deadline:
                heapq.heappush(self._deadlines, (float(deadline), task_id))
            else:
                with quarantine(self._redis, self._keys.open, member):
                    self._pushes.add(task_id)
        return int(number)

    def end_overdue(self) -> None:
        """End the waiting tasks whose deadline has passed."""
        seconds, microseconds = self._redis.time()
        now_s = seconds + microseconds / 1e6
        while self._deadlines and self._deadlines[0][0] < now_s:
            task_id = heapq.heappop(self._deadlines)[1]
            with quarantine(self._redis, self._keys.open, task_id.encode()):
                self._end(task_id)

    def _end(self, task_id: str) -> None:
        task = self._keys.task(task_id)
        request: Any = self._redis.hget(task, "request")
        tail = event_tail(task_id, "expired", {"step": 0, "metadata": metadata_of(request)})
        ended = self._expire(
            task=task, events=self._keys.events(task_id), open=self._keys.open,
            id=task_id, tail=tail,
        )  # fmt: skip
        if ended:
            logger.info("task %s: expired in the queue", task_id)
