"""What was submitted and cancelled in a run, and the events that clients and an observer read.

The observer reads the streams over a connection that no fault disturbs. Its times are used, as a
worker's clock may be off.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError
from redis.exceptions import RedisError

from api_contracts.events import EVENT, Event
from api_contracts.redis_io.connection import connect

if TYPE_CHECKING:
    from api_contracts.names import Keys
    from tests.chaos.submissions import Submission

#: Longest blocking read, after which the observer picks up new tasks, in milliseconds.
_BLOCK_MS = 100
#: Pause of the observer while Redis is away or no task is open, in seconds.
_PAUSE_S = 0.02


@dataclass(frozen=True)
class StreamEntry:
    """An entry of a task's stream as the observer read it."""

    seq: int
    #: None for one that the contracts do not know.
    event: Event | None
    #: Monotonic seconds; 0 where the time is not used.
    seen_at_s: float = 0.0


@dataclass
class RecordedEvents:
    """Submissions, cancels and events of a run. Thread-safe."""

    submissions: dict[str, Submission] = field(default_factory=dict)
    #: Ids of tasks for which a cancel was sent, answered or not.
    cancels: set[str] = field(default_factory=set)
    #: The events that each task's client read.
    client_events: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    #: Undocumented errors of clients: task and text.
    client_errors: list[tuple[str, str]] = field(default_factory=list)
    #: The streams as the observer read them.
    timeline: dict[str, list[StreamEntry]] = field(default_factory=lambda: defaultdict(list))
    #: When the observer read the last entry (monotonic seconds).
    last_entry_s: float = field(default_factory=time.monotonic)
    _open: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_submission(self, submission: Submission) -> None:
        """Note a task that is about to be submitted."""
        with self._lock:
            self.submissions[submission.task_id] = submission
            self._open[submission.task_id] = 0

    def add_cancel(self, task_id: str) -> None:
        """Note a cancel that is about to be sent."""
        with self._lock:
            self.cancels.add(task_id)

    def add_client_event(self, event: Event) -> None:
        """Note an event that a client read."""
        with self._lock:
            self.client_events[event.task_id].append(event)

    def add_client_error(self, task_id: str, text: str) -> None:
        """Note an undocumented error of a client."""
        with self._lock:
            self.client_errors.append((task_id, text))

    def add_entry(self, task_id: str, entry: StreamEntry) -> None:
        """Note an entry that the observer read; a terminal event closes the task."""
        with self._lock:
            self.timeline[task_id].append(entry)
            self.last_entry_s = time.monotonic()
            if task_id in self._open:
                self._open[task_id] = entry.seq
                if entry.event is not None and entry.event.is_terminal:
                    del self._open[task_id]

    def open_tasks(self) -> dict[str, int]:
        """Tasks that were submitted and have not ended, with the number of the last event."""
        with self._lock:
            return dict(self._open)


class Observer(threading.Thread):
    """Reads the streams of all open tasks until `stop`."""

    def __init__(self, url: str, keys: Keys, events: RecordedEvents) -> None:
        super().__init__(name="observer", daemon=True)
        self._redis = connect(url)
        self._keys, self._events = keys, events
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
        opened = self._events.open_tasks()
        names = {self._keys.events(task_id).encode(): task_id for task_id in opened}
        if not names:
            return False
        after = {name: f"{opened[task_id]}-0" for name, task_id in names.items()}
        reply = self._redis.xread(after, block=_BLOCK_MS)  # type: ignore[arg-type]  # bytes are keys, too
        streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply)
        now_s = time.monotonic()
        for name, entries in streams:
            for number, fields in entries:
                self._events.add_entry(names[name], parse_entry(number, fields, now_s))
        return True


def parse_entry(number: bytes, fields: dict[bytes, bytes], seen_at_s: float = 0.0) -> StreamEntry:
    """An entry of a stream as Redis returns it."""
    try:
        event = EVENT.validate_json(fields[b"event"])
    except ValidationError:
        event = None
    return StreamEntry(int(number.split(b"-")[0]), event, seen_at_s)
