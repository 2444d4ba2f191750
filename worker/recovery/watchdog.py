"""The thread that ends a process whose device hangs.

A call into a driver that never returns can't be interrupted; only the end of the process frees the
device. What it was doing is given back first.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from typing import TYPE_CHECKING

from worker.exit_codes import STALLED

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Time that giving back may take, in seconds: Redis may be away too.
GIVE_BACK_S = 10.0


class Watchdog:
    """One daemon thread."""

    def __init__(
        self,
        step_s: Callable[[], float],
        timeout_s: float,
        give_back: Callable[[], None],
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        """`step_s` says how long the step lasts already; `give_back` is called before the end."""
        self._step_s, self._timeout_s = step_s, timeout_s
        self._give_back, self._leave = give_back, leave
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch; a second time does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="watchdog", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def look(self) -> bool:
        """Leave when the step lasts too long; gives whether it did."""
        if self._step_s() <= self._timeout_s:
            return False
        logger.critical("a step lasts longer than %g s; this process ends", self._timeout_s)
        faulthandler.dump_traceback()
        # On a thread, as it waits for Redis, which may have stalled everything.
        thread = threading.Thread(target=self._give_back, name="give-back", daemon=True)
        thread.start()
        thread.join(GIVE_BACK_S)
        logging.shutdown()
        self._leave(STALLED)
        return True

    def _serve(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout_s / 4)):
            if self.look():
                return
