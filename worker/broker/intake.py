"""What the consumer asks Redis next: for a message, or to be woken when there is one.

`take.lua` takes a message in one step. Where there is none, the worker is ready, and its connection
blocks until a client, another worker or its own `queue_watch` wakes it. Does no I/O.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from api_contracts.names import MAX_MESSAGE_BYTES, URGENT_ONLY, WAKE_PREFIX, is_urgent, wake_below
from api_contracts.redis_io import scripts
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, new_tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.broker.queue_watch import WaitState

#: Longest time that Redis blocks the connection until this worker is woken, in seconds.
BLOCK_S = 4
#: Time after which a ready worker asks for a message again, in seconds: it is ready no more if
#: Redis lost its data.
READY_AGAIN_S = 30.0
#: How long a woken worker may take to ask for a message, in seconds; meanwhile busier workers leave
#: one to it. After that they ask again, and leave none.
WOKEN_S = 0.1
#: Pause after a message, in seconds, while other workers want some, too: so nine tasks go to three
#: idle workers as 3, 3 and 3. Others count for `OTHERS_S` after they were seen.
YIELD_S = 0.005
OTHERS_S = 1.0
#: Pause after Redis refused a call for a temporary reason, in seconds.
REFUSED_PAUSE_S = 1.0
TAKE = scripts.read("worker.broker", "take")


class WaitingList(NamedTuple):
    """A list of waiting messages."""

    name: str
    queue: str
    priority: int


def ready_below(lists: Sequence[WaitingList]) -> int:
    """Number of tasks of a ready worker that does not take from all of these lists."""
    return wake_below(urgent=is_urgent(lists[-1].priority))


class Taken(NamedTuple):
    """A message that was taken."""

    #: Delivery tag.
    tag: str
    queue: str
    #: Of the list that it was in.
    priority: int
    entry: bytes
    #: Its size if it is too large: then it was dropped.
    too_large_bytes: int


class Intake:
    """The state of one connection that takes messages. One call is outstanding at a time."""

    def __init__(self, owner: str, lease_s: float, wait_state: WaitState) -> None:
        """`lease_s` is the lease of a message, `owner` its holder."""
        self._owner, self._lease_s, self._wait_state = owner, lease_s, wait_state
        #: The list that wakes this worker.
        self.wake_key = f"{WAKE_PREFIX}{owner}"
        #: Of the outstanding call: the message's tag, the lists, and whether it only waits.
        self._tag, self._is_wait = "", False
        self._lists: Sequence[WaitingList] = ()
        #: Whether messages are left to ready workers that run fewer tasks.
        self._leaves = True
        #: No call before this monotonic time.
        self._next_s = float("-inf")
        #: When other workers were last seen that were ready or just woken.
        self._others_s = float("-inf")
        #: When Redis last had no message and this worker became ready; None before.
        self._ready_s: float | None = None

    @property
    def command(self) -> str:
        """The name of the outstanding call's command."""
        return "BLPOP" if self._is_wait else "EVALSHA"

    @property
    def pause_s(self) -> float:
        """Seconds until the next call may be made; 0 or less when it may be now."""
        return self._next_s - time.monotonic()

    def next_call(self, lists: Sequence[WaitingList], tasks: int) -> list[Any]:
        """The next call; `lists` in order, `tasks` is the number of messages held now."""
        is_ready = self._ready_s is not None and time.monotonic() - self._ready_s < READY_AGAIN_S
        self._is_wait = is_ready and len(lists) == len(self._lists)
        if self._is_wait:
            self._wait_state.begin(lists)
            return ["BLPOP", self.wake_key, BLOCK_S]
        if is_urgent(lists[-1].priority):
            tasks += URGENT_ONLY
        self._tag, self._lists = new_tag(self._owner), lists
        call = TAKE.evalsha(
            unacked=UNACKED,
            unacked_index=UNACKED_INDEX,
            wake=self.wake_key,
            lists=[each.name for each in lists],
            tag=self._tag,
            lease_s=self._lease_s,
            max_bytes=MAX_MESSAGE_BYTES,
            owner=self._owner,
            tasks=tasks,
            leaves=self._leaves and tasks > 0,
            woken_s=WOKEN_S,
            below=ready_below(lists),
            origins=[part for each in lists for part in (each.queue, each.priority)],
        )
        return ["EVALSHA", *call]

    def answered(self, answer: Any) -> Taken | None:  # noqa: ANN401  # Redis's reply
        """Read the reply to the outstanding call; the message in it, if any."""
        self._wait_state.end()
        if self._is_wait:
            if answer is not None:
                self._ready_s = None
                self._see_others(self._wait_state.ready - 1)
            return None
        if isinstance(answer, int):
            self._wait_state.ready = abs(answer)
            self._leaves = answer >= 0
            if self._leaves:
                self._ready_s = time.monotonic()
            else:
                self._next_s = time.monotonic() + WOKEN_S
            return None
        index, entry, others, *size = answer
        self._ready_s, self._leaves = None, True
        self._see_others(others)
        if (now_s := time.monotonic()) - self._others_s < OTHERS_S:
            self._next_s = now_s + YIELD_S
        found = self._lists[index]
        return Taken(self._tag, found.queue, found.priority, entry, *(size or [0]))

    def waits_below(self, priority: int) -> bool:
        """Whether this worker waits for messages, but not for those of this priority."""
        return self._is_wait and self._lists[-1].priority < priority

    def _see_others(self, number: int) -> None:
        if number > 0:
            self._others_s = time.monotonic()

    def refused(self) -> None:
        """Redis refused the outstanding call for a temporary reason."""
        self.lost()
        self._next_s = time.monotonic() + REFUSED_PAUSE_S

    def lost(self) -> None:
        """The answer to the outstanding call is lost; the next one asks for a message."""
        self._wait_state.end()
        self._ready_s = None
