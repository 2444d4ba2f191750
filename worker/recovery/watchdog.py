"""Exits a process whose device hangs. One daemon thread.

A driver call that never returns can't be interrupted; only exiting the process frees the device.
The tasks are requeued in their records first, with the reason. Their messages return as those of
any dead process: at once by the supervisor, or without one when their leases have expired.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from typing import TYPE_CHECKING

from worker.background import BackgroundThread, log_error
from worker.exit_codes import STALLED

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Longest wait for `on_stall`, in seconds: Redis may be unavailable, too.
REPORT_TIMEOUT_S = 10.0


class Watchdog:
    """Compares the duration of the current step with its limit."""

    def __init__(
        self,
        step_s: Callable[[], float],
        timeout_s: float,
        on_stall: Callable[[], None],
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        """`step_s` returns the duration of the current step; `on_stall` is called before the exit.

        `leave` exits the process with a status.
        """
        self._step_s, self._timeout_s = step_s, timeout_s
        self._on_stall, self._leave = on_stall, leave
        self._thread = BackgroundThread(
            "watchdog", self.check, lambda error: log_error(logger, "watchdog failed", error),
            pause_s=min(1.0, timeout_s / 4),
        )  # fmt: skip

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, without waiting for it."""
        self._thread.stop()

    def check(self) -> None:
        """Exit the process when the current step has taken too long."""
        if self._step_s() <= self._timeout_s:
            return
        logger.critical("a step lasts longer than %g s; this process exits", self._timeout_s)
        faulthandler.dump_traceback()
        # On a thread of its own: it waits for Redis, which may hang, too.
        thread = threading.Thread(target=self._on_stall, name="stall-report", daemon=True)
        thread.start()
        thread.join(REPORT_TIMEOUT_S)
        logging.shutdown()
        self._thread.stop()
        self._leave(STALLED)
