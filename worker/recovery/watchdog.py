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
    """Asks whether the device hangs."""

    def __init__(
        self,
        stall: Callable[[], str | None],
        on_stall: Callable[[str], None],
        leave: Callable[[int], None] = os._exit,
        *,
        pause_s: float = 1.0,
    ) -> None:
        """`stall` returns why the device counts as hanging, or None; every `pause_s` it is asked.

        `on_stall` is called with that before `leave` exits the process with a status.
        """
        self._stall, self._on_stall, self._leave = stall, on_stall, leave
        self._thread = BackgroundThread(
            "watchdog", self.check, lambda error: log_error(logger, "watchdog failed", error),
            pause_s=pause_s,
        )  # fmt: skip

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, without waiting for it."""
        self._thread.stop()

    def check(self) -> None:
        """Exit the process when its device hangs."""
        if (reason := self._stall()) is None:
            return
        logger.critical("%s; this process exits", reason)
        faulthandler.dump_traceback()
        # On a thread of its own: it waits for Redis, which may hang, too.
        thread = threading.Thread(
            target=self._on_stall, args=(reason,), name="stall-report", daemon=True
        )
        thread.start()
        thread.join(REPORT_TIMEOUT_S)
        logging.shutdown()
        self._thread.stop()
        self._leave(STALLED)
