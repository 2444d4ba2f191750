"""One loading of a model, on a thread of its own, so that the jobs of other models go on.

It reads files or the hub, which may take minutes or never answer. A thread that hangs can't be
ended: it is left behind, and its result is dropped.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.model_loader import LoadedModel


class ModelLoading:
    """Begins with its creation. Times are seconds on the monotonic clock."""

    def __init__(self, alias: str, load: Callable[[], LoadedModel], timeout_s: float) -> None:
        """`load` returns the model, or raises."""
        self.alias, self.began_s, self._timeout_s = alias, time.perf_counter(), timeout_s
        self._load = load
        self._model: LoadedModel | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"load-{alias}", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether `take` returns or raises."""
        return not self._thread.is_alive() or self._is_late

    def take(self) -> LoadedModel:
        """The model, once; raises what loading raised, `ModelLoadError` when it takes too long."""
        if self._thread.is_alive():
            raise ModelLoadError(
                f"loading model {self.alias!r} took more than {self._timeout_s:g} s"
                " (SAG_LOAD_TIMEOUT_S): its disk or its hub does not answer"
            )
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        model, self._model = self._model, None
        assert model is not None
        return model

    @property
    def _is_late(self) -> bool:
        return time.perf_counter() - self.began_s > self._timeout_s

    def _run(self) -> None:
        try:
            self._model = self._load()
        except BaseException as error:  # noqa: BLE001  # of its jobs, which `take` raises
            self._error = error
