"""Ends a process that should have exited. One daemon thread, from the first order on.

Celery's main thread, the pool and every slot may wait for Redis, for minutes or for good, and a
driver may never return. What the process still holds then returns when its leases expire.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: How long a process without tasks may take to end its threads and connections, in seconds.
CLOSE_S = 20.0
#: Pause between two checks, in seconds.
POLL_INTERVAL_S = 0.1


class ExitDeadline:
    """Exits the process `timeout_s` after the drain, or `close_s` after its last task."""

    def __init__(
        self,
        is_busy: Callable[[], bool],
        timeout_s: float,
        leave: Callable[[int], None] = os._exit,
        close_s: float = CLOSE_S,
    ) -> None:
        """`is_busy` returns whether a task is left; `leave` exits the process with a status."""
        self._is_busy, self._timeout_s, self._close_s = is_busy, timeout_s, close_s
        self._leave = leave
        # A second signal's handler may interrupt the first one's.
        self._lock, self._is_set = threading.RLock(), False

    def set(self, drain_s: float, status: int) -> None:
        """Exit with `status` if the process has not ended by then; only the first call counts."""
        with self._lock:
            if self._is_set:
                return
            self._is_set = True
        threading.Thread(
            target=self._run, args=(drain_s, status), name="exit-deadline", daemon=True
        ).start()

    def _run(self, drain_s: float, status: int) -> None:
        busy_s = now_s = time.monotonic()
        until_s = now_s + drain_s + self._timeout_s
        while now_s < min(until_s, busy_s + self._close_s):
            if self._is_busy():  # a message that was taken before may become a task only now
                busy_s = now_s
            time.sleep(POLL_INTERVAL_S)
            now_s = time.monotonic()
        logger.critical("this process was to end and hangs; it exits, leases return what it held")
        faulthandler.dump_traceback()
        logging.shutdown()
        self._leave(status)
