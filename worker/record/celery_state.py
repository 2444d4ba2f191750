"""Writes Celery's states of running tasks on a thread of its own, so that no task waits for it.

The newest states of all tasks are written together.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from worker.background import BackgroundThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    #: Celery's meta and the name of the state.
    State = tuple[dict[str, Any], str]

logger = logging.getLogger(__name__)

#: Least time between two `PROGRESS` states of a task, in seconds.
MIN_INTERVAL_S = 1.0
#: How long `discard` waits for a state that is being written, in seconds.
FLUSH_S = 5.0


class CeleryState:
    """One daemon thread, which writes the newest state of each task and skips the others."""

    def __init__(self, store: Callable[[Mapping[str, State]], None]) -> None:
        """`store` writes states, by task id. It should raise within seconds."""
        self._store = store
        #: By task id: the queued state, and when the last progress was queued.
        self._newest: dict[str, State] = {}
        self._progress_s: dict[str, float] = {}
        #: The states that are being written.
        self._writing: dict[str, State] = {}
        self._wake = threading.Condition()
        self._thread = BackgroundThread(
            "celery", self._write_newest, self._on_error, on_exit=self._set_idle
        )

    def post_started(self, task_id: str) -> None:
        """Queue `STARTED`, with the meta of Celery's own workers, and return at once."""
        meta = {"pid": os.getpid(), "hostname": socket.gethostname()}
        self._post({task_id: (meta, "STARTED")})

    def post_progress(self, metas: Mapping[str, dict[str, int]]) -> None:
        """Queue `PROGRESS` of tasks, each at most once per `MIN_INTERVAL_S`.

        `metas` has `{"step", "total_steps"}` by task id.
        """
        now_s = time.monotonic()
        with self._wake:
            due = [
                task_id
                for task_id in metas
                if now_s - self._progress_s.get(task_id, -MIN_INTERVAL_S) >= MIN_INTERVAL_S
            ]
            self._progress_s |= dict.fromkeys(due, now_s)
            self._post({task_id: (metas[task_id], "PROGRESS") for task_id in due})

    def _post(self, states: dict[str, State]) -> None:
        if not states:
            return
        with self._wake:
            self._newest |= states
            self._thread.start()
            self._wake.notify_all()

    def discard(self, task_id: str) -> None:
        """Drop a task's queued state; wait up to `FLUSH_S` for one being written."""
        deadline_s = time.monotonic() + FLUSH_S
        with self._wake:
            self._newest.pop(task_id, None)
            self._progress_s.pop(task_id, None)
            while task_id in self._writing and (left_s := deadline_s - time.monotonic()) > 0:
                self._wake.wait(left_s)

    def close(self) -> None:
        """Stop the thread."""
        self._thread.stop()
        with self._wake:
            self._wake.notify_all()
        self._thread.join(FLUSH_S)

    def _write_newest(self) -> None:
        self._set_idle()
        with self._wake:
            while not self._newest and not self._thread.is_stopping:
                self._wake.wait()
            if self._thread.is_stopping:
                return
            self._writing, self._newest = self._newest, {}
        self._store(self._writing)

    def _on_error(self, error: Exception) -> None:
        logger.warning("tasks %s: Celery's states not written: %r", ", ".join(self._writing), error)

    def _set_idle(self) -> None:
        with self._wake:
            self._writing = {}
            self._wake.notify_all()
