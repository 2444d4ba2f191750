"""Writes events and checkpoints on a thread of its own, so that no step waits for Redis.

What waits is written together, for all tasks of the process.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from api_contracts.redis_io.connection import is_unavailable
from worker.background import BackgroundThread, log_error
from worker.record.claim import NewCheckpoint, NewEvent, WriteAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.job_control import Control
    from worker.record.celery_state import CeleryState
    from worker.record.claim import Claim
    from worker.record.task_record import TaskRecord

logger = logging.getLogger(__name__)

#: Most queued events of a task; after that, new progress replaces the newest queued progress.
BACKLOG = 8
#: How long the first event after a pause waits for those of other tasks, in seconds. The engine
#: reports the steps of a round in a row, but its other thread may have the interpreter for 5 ms
#: between two of them. With 25 steps and 16 tasks in each UNet call, on two busy cores: 4.9 calls
#: an image without the wait, 4.0 with 2 ms, 3.5 with 5 ms; an event took 3, 6 and 10 ms (median).
LINGER_S = 0.005
#: Pause after a failed write, in seconds.
RETRY_PAUSE_S = 1.0
#: How long `flush` waits for the last events, in seconds.
FLUSH_S = 2.0


@dataclass(eq=False)
class _Watched:
    control: Control
    waiting: deque[NewEvent | NewCheckpoint] = field(default_factory=deque)
    #: Whether some of it is being written.
    is_writing: bool = False


#: What waits next, and its task.
_Taken = tuple[_Watched, NewEvent | NewCheckpoint]


class EventPublisher:
    """One daemon thread for all tasks of this worker."""

    def __init__(self, record: TaskRecord, celery: CeleryState) -> None:
        """`celery` mirrors each published step into Celery's state."""
        self._record = record
        self._celery = celery
        self._watched: dict[str, _Watched] = {}
        self._wake = threading.Condition()
        #: Whether the thread waits for the next event, and how many callers wait in `flush`.
        self._is_idle, self._flushing = False, 0
        self._thread = BackgroundThread(
            "publisher", self._write_next, self._on_error, retry_pause_s=RETRY_PAUSE_S
        )

    def watch(self, claim: Claim, control: Control) -> None:
        """Accept events of a claimed task, from now until `flush`."""
        with self._wake:
            self._watched[claim.task_id] = _Watched(control)
        self._thread.start()
        self._celery.post_started(claim.task_id)

    def post(self, claim: Claim, kind: str, fields: Mapping[str, Any]) -> None:
        """Queue an event and return at once."""
        with self._wake:
            watched = self._watched.get(claim.task_id)
            if watched is None:
                return
            behind = len(watched.waiting) >= BACKLOG
            if kind == "progress" and behind:
                newest = (each for each in reversed(watched.waiting) if _is_progress(each))
                if (skipped := next(newest, None)) is not None:
                    watched.waiting.remove(skipped)
            self._queue(watched, NewEvent(claim, kind, fields))

    def save_checkpoint(self, claim: Claim, step: int, state: bytes) -> None:
        """Queue a checkpoint and return at once; an older queued one is dropped."""
        with self._wake:
            watched = self._watched.get(claim.task_id)
            if watched is None:
                return
            for each in [each for each in watched.waiting if isinstance(each, NewCheckpoint)]:
                watched.waiting.remove(each)
            self._queue(watched, NewCheckpoint(claim, step, state))

    def _queue(self, watched: _Watched, posted: NewEvent | NewCheckpoint) -> None:
        watched.waiting.append(posted)
        if self._is_idle:  # one wake-up for all events of a round
            self._is_idle = False
            self._wake.notify_all()

    def flush(self, claim: Claim) -> None:
        """Wait until the task's events are written, then accept no more of them.

        Events not written after `FLUSH_S` are dropped, so that progress does not delay the outcome.
        """
        with self._wake:
            watched = self._watched.get(claim.task_id)
            if watched is not None and (watched.waiting or watched.is_writing):
                self._flushing += 1
                self._wake.notify_all()
                self._wake.wait_for(lambda: not (watched.waiting or watched.is_writing), FLUSH_S)
                self._flushing -= 1
            self._watched.pop(claim.task_id, None)
        self._celery.discard(claim.task_id)

    def close(self) -> None:
        """Stop the thread."""
        self._thread.stop()
        with self._wake:
            self._wake.notify_all()
        self._thread.join(FLUSH_S)
        self._celery.close()

    def _on_error(self, error: Exception) -> None:
        log_error(logger, "events not written", error)

    def _write_next(self) -> None:
        if found := self._next():
            self._write(found)

    def _next(self) -> list[_Taken]:
        """All that waits, in order, one of each task in turn; empty once closed."""
        with self._wake:
            while not self._waiting() and not self._thread.is_stopping:
                self._is_idle = True
                self._wake.wait()
            self._is_idle = False
            self._wake.wait_for(self._is_urgent, LINGER_S)
            if self._thread.is_stopping:
                return []
            taken: list[_Taken] = []
            while waiting := self._waiting():
                taken += [(each, each.waiting.popleft()) for each in waiting]
            for watched, _ in taken:
                watched.is_writing = True
            return taken

    def _waiting(self) -> list[_Watched]:
        """The tasks for which something waits; the one that was written last comes last."""
        return [each for each in self._watched.values() if each.waiting]

    def _is_urgent(self) -> bool:
        """Whether there is nothing to linger for: a caller waits, or every task has an event."""
        every_task = all(each.waiting for each in self._watched.values())
        return every_task or self._flushing > 0 or self._thread.is_stopping

    def _write(self, taken: Sequence[_Taken]) -> None:
        """Write what was taken; drop one that can't be written, queue again what was not written.

        Raises, and so pauses the thread, while Redis is unavailable: a record that can't be written
        must not delay the events of other tasks.
        """
        answers: Sequence[WriteAnswer | Exception]
        try:
            answers = self._record.write([posted for _, posted in taken])
        except Exception as error:  # noqa: BLE001  # ends this call, is handled below
            answers = [error]
        outage = _outage_in(answers)
        written = len(answers) - (outage is not None)
        try:
            self._report(taken[:written], answers)
        finally:
            self._settle(taken[:written], taken[written:])
        if outage is not None:
            raise outage

    def _report(self, taken: Sequence[_Taken], answers: Sequence[WriteAnswer | Exception]) -> None:
        """Stop tasks as Redis answered, mirror progress into Celery's states, log errors."""
        mirrored: dict[str, dict[str, int]] = {}
        for (watched, posted), answer in zip(taken, answers, strict=False):
            task_id = posted.claim.task_id
            if isinstance(answer, Exception):
                kind = posted.kind if isinstance(posted, NewEvent) else "checkpoint"
                log_error(logger, f"task {task_id}: {kind} dropped", answer)
                continue
            if answer.stop is not None:
                watched.control.request(answer.stop)
            if _is_progress(posted) and answer is not WriteAnswer.SUPERSEDED:
                fields = posted.fields
                mirrored[task_id] = {name: int(fields[name]) for name in ("step", "total_steps")}
        self._celery.post_progress(mirrored)

    def _settle(self, written: Sequence[_Taken], left: Sequence[_Taken]) -> None:
        """Queue again what is left, before what was posted meanwhile; other tasks come first."""
        with self._wake:
            for watched, posted in written:
                watched.is_writing = False
                task_id = posted.claim.task_id
                if self._watched.get(task_id) is watched:  # not flushed meanwhile
                    self._watched[task_id] = self._watched.pop(task_id)
            for watched, posted in reversed(left):
                watched.is_writing = False
                watched.waiting.appendleft(posted)
            self._wake.notify_all()


def _is_progress(posted: NewEvent | NewCheckpoint) -> TypeGuard[NewEvent]:
    return isinstance(posted, NewEvent) and posted.kind == "progress"


def _outage_in(answers: Sequence[WriteAnswer | Exception]) -> Exception | None:
    """The error of the last answer, if it says that Redis is unavailable."""
    last = answers[-1]
    return last if isinstance(last, Exception) and is_unavailable(last) else None
