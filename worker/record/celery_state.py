"""Celery's states of a running task, written beside the events: its Redis holds nobody up."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Least time between two states of a task, in seconds.
EVERY_S = 1.0
#: How long `forget` waits for a state that is being written, in seconds.
FLUSH_S = 5.0


class CeleryState:
    """One daemon thread, which writes the newest state of each task and skips the others."""

    def __init__(self, store: Callable[[str, dict[str, Any], str], None]) -> None:
        """`store` gets a task id, what Celery keeps and the state; it should give up in seconds."""
        self._store = store
        self._newest: dict[str, tuple[dict[str, Any], str]] = {}
        self._told_s: dict[str, float] = {}
        self._busy: str | None = None
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, task_id: str) -> None:
        """Hand `STARTED` over, with what Celery itself would write, and return at once."""
        meta = {"pid": os.getpid(), "hostname": socket.gethostname()}
        with self._wake:
            self._hand_over(task_id, meta, "STARTED")

    def tell(self, task_id: str, meta: dict[str, int]) -> None:
        """Hand `PROGRESS` over: `{"step", "total_steps"}`. What comes too soon is skipped."""
        now_s = time.monotonic()
        with self._wake:
            if now_s - self._told_s.get(task_id, -EVERY_S) < EVERY_S:
                return
            self._told_s[task_id] = now_s
            self._hand_over(task_id, meta, "PROGRESS")

    def _hand_over(self, task_id: str, meta: dict[str, Any], state: str) -> None:
        self._newest[task_id] = meta, state
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="celery", daemon=True)
            thread.start()
            self._thread = thread
        self._wake.notify_all()

    def forget(self, task_id: str) -> None:
        """Write nothing more about a task: what comes next is its end, which must stay."""
        deadline_s = time.monotonic() + FLUSH_S
        with self._wake:
            self._newest.pop(task_id, None)
            self._told_s.pop(task_id, None)
            while self._busy == task_id and (left_s := deadline_s - time.monotonic()) > 0:
                self._wake.wait(left_s)

    def close(self) -> None:
        """End the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=FLUSH_S)

    def _serve(self) -> None:
        while True:
            with self._wake:
                self._busy = None
                self._wake.notify_all()
                while not self._newest and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                self._busy = task_id = next(iter(self._newest))
                newest = self._newest.pop(task_id)
            try:
                self._store(task_id, *newest)
            except Exception as error:  # noqa: BLE001  # Celery's backends raise what they like
                logger.warning("Celery's state of task %s not told: %r", task_id, error)
