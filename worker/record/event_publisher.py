"""Writes events and checkpoints on a thread of its own, so that no step waits for Redis."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from api_contracts.redis_io.connection import is_unavailable
from worker.background import BackgroundThread, log_error
from worker.record.claim import WriteAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.job_control import Control
    from worker.record.celery_state import CeleryState
    from worker.record.claim import Claim
    from worker.record.task_record import TaskRecord

logger = logging.getLogger(__name__)

#: Most queued events of a task; after that, new progress replaces the newest queued progress.
BACKLOG = 8
#: Pause after a failed write, in seconds.
RETRY_PAUSE_S = 1.0
#: How long `flush` waits for the last events, in seconds.
FLUSH_S = 2.0

#: An event's kind and fields.
_Posted = tuple[str, "Mapping[str, Any]"]
#: Kind of a checkpoint, which is queued like an event; its fields are `step` and `state`.
_CHECKPOINT = "checkpoint"


@dataclass
class _Watched:
    claim: Claim
    control: Control
    waiting: deque[_Posted] = field(default_factory=deque)


class EventPublisher:
    """One daemon thread for all tasks of this worker."""

    def __init__(self, record: TaskRecord, celery: CeleryState) -> None:
        """`celery` mirrors each published step into Celery's state."""
        self._record = record
        self._celery = celery
        self._watched: dict[str, _Watched] = {}
        self._wake = threading.Condition()
        #: The task whose event is being written.
        self._writing: str | None = None
        self._thread = BackgroundThread(
            "publisher", self._write_next, self._on_error, retry_pause_s=RETRY_PAUSE_S
        )

    def watch(self, claim: Claim, control: Control) -> None:
        """Accept events of a claimed task, from now until `flush`."""
        with self._wake:
            self._watched[claim.task_id] = _Watched(claim, control)
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
                newest = (each for each in reversed(watched.waiting) if each[0] == "progress")
                if (skipped := next(newest, None)) is not None:
                    watched.waiting.remove(skipped)
            watched.waiting.append((kind, fields))
            self._wake.notify_all()

    def save_checkpoint(self, claim: Claim, step: int, state: bytes) -> None:
        """Queue a checkpoint and return at once; an older queued one is dropped."""
        with self._wake:
            watched = self._watched.get(claim.task_id)
            if watched is None:
                return
            for posted in [each for each in watched.waiting if each[0] == _CHECKPOINT]:
                watched.waiting.remove(posted)
            watched.waiting.append((_CHECKPOINT, {"step": step, "state": state}))
            self._wake.notify_all()

    def flush(self, claim: Claim) -> None:
        """Wait until the task's events are written, then accept no more of them.

        Events not written after `FLUSH_S` are dropped, so that progress does not delay the outcome.
        """
        deadline_s = time.monotonic() + FLUSH_S
        with self._wake:
            watched = self._watched.get(claim.task_id)
            while watched and (watched.waiting or self._writing == claim.task_id):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                self._wake.wait(left_s)
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
        if (found := self._next()) is not None:
            self._write(*found)

    def _next(self) -> tuple[_Watched, _Posted] | None:
        """The oldest queued event of a task, round robin over the tasks; None once closed."""
        with self._wake:
            while not self._thread.is_stopping:
                for task_id, watched in self._watched.items():
                    if watched.waiting:
                        self._watched[task_id] = self._watched.pop(task_id)  # last next time
                        self._writing = task_id
                        return watched, watched.waiting.popleft()
                self._wake.wait()
        return None

    def _write(self, watched: _Watched, posted: _Posted) -> None:
        """Write an event; queue it again when Redis is unavailable, drop it after another error.

        Only the first raises, and so pauses the thread: a record that can't be written must not
        delay the events of other tasks.
        """
        kind, fields = posted
        is_retried = False
        try:
            if kind == _CHECKPOINT:
                step, state = fields["step"], fields["state"]
                answer = self._record.save_checkpoint(watched.claim, step, state)
            else:
                answer = self._record.append(watched.claim, kind, fields)
            if answer.stop is not None:
                watched.control.request(answer.stop)
            if kind == "progress" and answer is not WriteAnswer.SUPERSEDED:
                meta = {name: int(fields[name]) for name in ("step", "total_steps")}
                self._celery.post_progress(watched.claim.task_id, meta)
        except Exception as error:
            is_retried = is_unavailable(error)
            if is_retried:
                raise
            log_error(logger, f"task {watched.claim.task_id}: {kind} dropped", error)
        finally:
            with self._wake:
                if is_retried:
                    watched.waiting.appendleft(posted)
                self._writing = None
                self._wake.notify_all()
