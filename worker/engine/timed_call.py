"""The download of a model, on a thread of its own, so that the jobs of other models go on.

A hub may take minutes or never answer. A thread that hangs can't be ended: it is left behind.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class TimedCall:
    """Begins with its creation. Times are seconds on the monotonic clock."""

    def __init__(self, alias: str, call: Callable[[], object], timeout_s: float) -> None:
        """`alias` is the model's."""
        self.alias, self.began_s, self._timeout_s = alias, time.perf_counter(), timeout_s
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"fetch-{alias}", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether `check` may be called."""
        is_late = time.perf_counter() - self.began_s > self._timeout_s
        return is_late or not self._thread.is_alive()

    def check(self) -> None:
        """Raise what the call raised, or `ModelLoadError` when it is late."""
        if self._thread.is_alive():
            raise ModelLoadError(
                f"the download of model {self.alias!r} took more than {self._timeout_s:g} s"
                " (SAG_LOAD_TIMEOUT_S): its hub does not answer"
            )
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        logger.info("downloading model %s from the hub", self.alias)
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001  # of the model's jobs: `check` raises it
            self._error = error
        else:
            took_s = time.perf_counter() - self.began_s
            logger.info("downloaded model %s in %.1f s", self.alias, took_s)
