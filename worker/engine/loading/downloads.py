"""Downloads of models, each on a thread of its own, so that no job of another model waits.

A hub may take hours, or never answer, and a thread that hangs can't be ended. So there is one for
each model at most, and later jobs wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import stamina

from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.config.models import ModelSpec

logger = logging.getLogger(__name__)

#: First and longest pause before a download is tried again, in seconds.
MIN_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
#: A download is not tried again when no job has waited for it for so long, in seconds.
FORGET_S = 5.0


class Downloads:
    """The downloads of the models of one process, by alias. Thread-safe."""

    def __init__(
        self, specs: Mapping[str, ModelSpec], download: Callable[[ModelSpec], object]
    ) -> None:
        """`download` returns when a model's files are on this machine, at once if they are."""
        self._specs, self._download = specs, download
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}

    @property
    def times_s(self) -> dict[str, float]:
        """Seconds that each running download has taken so far, pauses between tries included."""
        now_s = time.monotonic()
        with self._lock:
            return {alias: now_s - each.began_s for alias, each in self._running.items()}

    def wanted(self, alias: str) -> Future[None]:
        """The model's download, begun if none runs; a job that waits for it calls this again.

        It is tried again, with growing pauses, while a job waits and the error may pass; then the
        future has the error.
        """
        with self._lock:
            if (running := self._running.get(alias)) is None:
                running = self._running[alias] = _Running()
                threading.Thread(
                    target=self._run, args=(alias, running), name=f"download-{alias}", daemon=True
                ).start()
            running.wanted_s = time.monotonic()
        return running.future

    def _run(self, alias: str, running: _Running) -> None:
        error: BaseException | None = None
        try:
            for attempt in stamina.retry_context(
                on=lambda raised: self._is_tried_again(alias, running, raised),
                attempts=None, timeout=None, wait_initial=MIN_PAUSE_S, wait_max=MAX_PAUSE_S,
            ):  # fmt: skip
                with attempt:
                    self._download(self._specs[alias])
        except BaseException as raised:  # noqa: BLE001  # raised by the future
            error = raised
        with self._lock:
            del self._running[alias]
        if error is None:
            running.future.set_result(None)
        else:
            running.future.set_exception(error)

    def _is_tried_again(self, alias: str, running: _Running, raised: Exception) -> bool:
        if not (isinstance(raised, ModelLoadError) and raised.retryable):
            return False
        logger.warning("download of model %s failed: %s", alias, raised)
        return time.monotonic() - running.wanted_s < FORGET_S


class _Running:
    def __init__(self) -> None:
        self.future: Future[None] = Future()
        self.began_s = self.wanted_s = time.monotonic()
