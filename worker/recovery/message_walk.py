"""Which open tasks have a message in no queue and no worker, found a slice at a time.

First the ids of all messages are read, then the open tasks: one without a message is suspect. Each
step is one or a few short calls to Redis. How long a walk takes grows with the queue; how much of
Redis's time it takes in a second does not, since the reconciler decides how many steps it makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.broker.held_messages import HeldMessages
    from worker.recovery.open_tasks import OpenTasks, Suspect

#: Messages read by the first call, and the most that one reads.
FIRST_COUNT, MAX_COUNT = 20, 500
#: What one call should cost, in bytes that Redis copies: about 2 ms of its time.
#: Time is no measure: in a long list most of it is the way to the first message.
SLICE_COST = 1_500_000
#: To send a task again takes as long as to read so many.
REVIVE_READS = 10


class MessageWalk:
    """One walk over all messages and open tasks."""

    def __init__(
        self, tasks: OpenTasks, messages: HeldMessages, queues: set[str], lease_s: float
    ) -> None:
        """`queues` are those that are searched; those of suspects that are not are added."""
        self._tasks, self._messages = tasks, messages
        self._queues, self._lease_s = queues, lease_s
        self._count = FIRST_COUNT
        #: Hashes of the ids of all messages: at a million tasks 80 MB, a third of the ids.
        self._seen: set[int] = set()

    def steps(self, revive: Callable[[str, Suspect], object]) -> Iterator[int]:
        """Walk; each step gives the number of messages and tasks that it read.

        `revive` is called with each suspect.
        """
        self._tasks.forget_pending_cancels()
        last_s = self._tasks.now_s() - self._lease_s
        searched = frozenset(self._queues)
        for name in [*self._messages.lists(sorted(searched)), UNACKED]:
            yield from self._read_ids(name)
        for members in self._tasks.slices():
            unseen = [
                (member, touched)
                for member, touched in members
                if touched <= last_s and hash(member) not in self._seen
            ]
            for task_id, suspect in self._tasks.suspects(unseen) if unseen else ():
                if suspect.queue in searched:
                    revive(task_id, suspect)
                    yield REVIVE_READS
                else:
                    self._queues.add(suspect.queue)
            yield len(members)

    def _read_ids(self, name: str) -> Iterator[int]:
        cursor: bytes | int = 0
        while cursor != b"0":
            found = self._messages.ids(name, cursor, self._count)
            cursor = found.cursor
            self._seen.update(map(hash, found.ids))
            if found.read:
                fitting = int(SLICE_COST * found.read / max(found.cost, 1))
                self._count = max(1, min(fitting, 5 * self._count, MAX_COUNT))
            yield found.read
