"""What was asked of the service while it ran, and what was seen of it, by clients and from beside.

The observer reads the streams over a connection that no fault touches: its moments are the truth
about when, since a worker's own clock may be off.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError

from api_contracts.events import EVENT, Event

if TYPE_CHECKING:
    from api_contracts.names import Keys
    from tests.chaos.orders import Order

#: Longest wait inside Redis before the observer looks which tasks are new.
_BLOCK_MS = 100
#: Pause of the observer while Redis is away or nothing is open, in seconds.
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Told:
    """An entry of a stream: its number, the event (None of an unknown kind), when it was seen."""

    seq: int
    event: Event | None
    #: Monotonic seconds; 0 when it does not matter.
    moment_s: float = 0.0


@dataclass
class History:
    """Everything that was asked and seen. Thread-safe."""

    orders: dict[str, Order] = field(default_factory=dict)
    #: Ids whose cancel was asked for, whether or not an answer came.
    cancels: set[str] = field(default_factory=set)
    #: What each client was told.
    seen: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    #: What a client raised that it must not raise: task and words.
    broke: list[tuple[str, str]] = field(default_factory=list)
    #: The streams as the observer read them.
    timeline: dict[str, list[Told]] = field(default_factory=lambda: defaultdict(list))
    #: When anything new was seen last (monotonic seconds).
    news_s: float = field(default_factory=time.monotonic)
    _open: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, order: Order) -> None:
        """A task is about to be submitted."""
        with self._lock:
            self.orders[order.task_id] = order
            self._open[order.task_id] = 0

    def ask_cancel(self, task_id: str) -> None:
        """A cancel is about to be sent."""
        with self._lock:
            self.cancels.add(task_id)

    def see(self, event: Event) -> None:
        """A client was told an event."""
        with self._lock:
            self.seen[event.task_id].append(event)

    def note(self, task_id: str, words: str) -> None:
        """A client raised what it must not."""
        with self._lock:
            self.broke.append((task_id, words))

    def tell(self, task_id: str, told: Told) -> None:
        """The observer read an entry; a task's end closes it."""
        with self._lock:
            self.timeline[task_id].append(told)
            self.news_s = time.monotonic()
            if task_id in self._open:
                self._open[task_id] = told.seq
                if told.event is not None and told.event.is_terminal:
                    del self._open[task_id]

    def open(self) -> dict[str, int]:
        """Tasks that were asked for and have not ended, with the number of the last event."""
        with self._lock:
            return dict(self._open)


class Observer(threading.Thread):
    """Reads the streams of all open tasks until it is told to stop."""

    def __init__(self, url: str, keys: Keys, history: History) -> None:
        super().__init__(name="observer", daemon=True)
        self._redis = Redis.from_url(url, socket_timeout=10, protocol=2)
        self._keys, self._history = keys, history
        self._done = threading.Event()

    def run(self) -> None:
        """Read until `stop`."""
        while not self._done.is_set():
            try:
                found = self._read()
            except RedisError:
                found = False
            if not found:
                self._done.wait(_PAUSE_S)

    def stop(self) -> None:
        """End the thread."""
        self._done.set()
        self.join()
        self._redis.close()

    def _read(self) -> bool:
        opened = self._history.open()
        names = {self._keys.events(task_id).encode(): task_id for task_id in opened}
        if not names:
            return False
        after = {name: f"{opened[task_id]}-0" for name, task_id in names.items()}
        reply = self._redis.xread(after, block=_BLOCK_MS)  # type: ignore[arg-type]  # bytes are keys, too
        streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply)
        now_s = time.monotonic()
        for name, entries in streams:
            for number, fields in entries:
                self._history.tell(names[name], told(number, fields, now_s))
        return True


def told(number: bytes, fields: dict[bytes, bytes], moment_s: float = 0.0) -> Told:
    """An entry of a stream as it lies in Redis."""
    try:
        event = EVENT.validate_json(fields[b"event"])
    except ValidationError:
        event = None
    return Told(int(number.split(b"-")[0]), event, moment_s)
