"""A daemon thread that repeats a round until it is stopped. Knows nothing of what a round does."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from api_contracts.redis_io.connection import is_unavailable

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable


class BackgroundThread:
    """Calls `run_round` again and again, with a pause after each round.

    A round that raises ends neither the thread nor the process: `on_error` gets the exception, and
    the next round follows. Methods may be called from any thread, `start` and `stop` repeatedly.
    """

    def __init__(
        self,
        name: str,
        run_round: Callable[[], object],
        on_error: Callable[[Exception], object],
        *,
        pause_s: float = 0.0,
        retry_pause_s: float | None = None,
        on_exit: Callable[[], object] = lambda: None,
    ) -> None:
        """`retry_pause_s` follows a round that raised, `pause_s` unless given.

        `on_exit` is called on the thread after the last round.
        """
        self._run_round, self._on_error, self._on_exit = run_round, on_error, on_exit
        self._pause_s = pause_s
        self._retry_pause_s = pause_s if retry_pause_s is None else retry_pause_s
        self._stopping = threading.Event()
        self._start_lock, self._started = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called; a round that waits checks it."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Start the thread, unless it was started or stopped before."""
        with self._start_lock:
            if not self._started and not self.is_stopping:
                self._thread.start()
                self._started = True

    def pause(self, seconds: float) -> None:
        """Called by a round: sleep, until `stop` is called at the latest."""
        self._stopping.wait(seconds)

    def stop(self) -> None:
        """Stop after the current round; returns at once."""
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for the thread to end, if it was started."""
        if self._started:
            self._thread.join(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Stop and join."""
        self.stop()
        self.join(timeout_s)

    def _run(self) -> None:
        while not self.is_stopping:
            pause_s = self._pause_s
            try:
                self._run_round()
            except Exception as error:  # noqa: BLE001  # the process depends on this thread
                pause_s = self._retry_pause_s
                self._on_error(error)
            if pause_s:
                self._stopping.wait(pause_s)
        self._on_exit()


def log_error(logger: logging.Logger, what: str, error: Exception) -> None:
    """Log a warning, with a traceback unless Redis is unavailable."""
    logger.warning("%s: %s", what, error, exc_info=None if is_unavailable(error) else error)
