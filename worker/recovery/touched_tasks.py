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
from worker.recovery.quarantine import known_type, quarantine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.push_queue import PushQueue

logger = logging.getLogger(__name__)

#: Tasks read by one call: to shrink the events of 150 new ones took Redis 6 ms at most.
SLICE = 100
#: To end a task takes as long as to read so many.
END_READS = 10


class TouchedTasks:
    """Ends waiting tasks past their deadline; queues the pushes of those that ended while waiting.

    Raises redis-py's exceptions; what was left undone then is done in the next round.
    """

    def __init__(self, redis: Redis, keys: Keys, pushes: PushQueue) -> None:
        """`redis` has the records."""
        self._redis, self._keys, self._pushes = redis, keys, pushes
        self._touched, self._expire = (
            load(redis, "worker.record", name) for name in ("touched", "expire")
        )
        self._since, self._now_s = 0.0, 0.0
        self._count = SLICE
        #: Deadlines of waiting tasks, in Unix seconds, and their ids; and the newest by id.
        self._deadlines: list[tuple[float, str]] = []
        self._deadline_of: dict[str, float] = {}

    def forget(self) -> None:
        """Read all tasks again, as of another Redis: its clock may be behind the former one's."""
        self._since = 0.0

    def read(self) -> Iterator[int]:
        """Read the tasks that were written since the last time; each step gives their number."""
        number = asked = 0
        while number == asked:
            asked = self._count
            number = self._read_slice()
            yield number

    def end_overdue(self) -> Iterator[int]:
        """End the waiting tasks whose deadline has passed; each step gives its cost in reads."""
        while self._deadlines and self._deadlines[0][0] < self._now_s:
            deadline_s, task_id = self._deadlines[0]
            if self._deadline_of.get(task_id) == deadline_s:
                with quarantine(self._redis, self._keys.open, task_id.encode()):
                    self._end(task_id)
                del self._deadline_of[task_id]
            heapq.heappop(self._deadlines)
            yield END_READS

    def _read_slice(self) -> int:
        before, _, behind = self._keys.task("\n").partition("\n")
        stream = self._keys.events("\n").partition("\n")[2]
        number, first, last, now, found = 0, b"0", b"0", b"0", []
        with known_type(self._redis, self._keys.open):
            number, first, last, now, *found = self._touched(
                open=self._keys.open, scratch=self._keys.scratch, since=self._since,
                count=self._count, before=before, behind=behind, stream=stream,
            )  # fmt: skip
        for member, deadline in zip(found[::2], found[1::2], strict=True):
            self._note(member, deadline)
        # All with one score: the next slice begins with the same tasks, so it must be larger.
        is_stuck = number == self._count and first == last
        self._count = 2 * self._count if is_stuck else SLICE
        # Redis's clock was set back: tasks written since then have lower scores.
        is_back, self._now_s = float(now) < self._now_s, float(now)
        self._since = 0.0 if is_back else float(last)
        return int(number)

    def _note(self, member: bytes, deadline: bytes) -> None:
        task_id = member.decode(errors="replace")
        if not deadline:
            with quarantine(self._redis, self._keys.open, member):
                self._pushes.add(task_id)
        elif self._deadline_of.get(task_id) != float(deadline):
            self._deadline_of[task_id] = float(deadline)
            heapq.heappush(self._deadlines, (float(deadline), task_id))

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
