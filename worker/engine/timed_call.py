"""One call that loads a model, on a thread of its own, so that the jobs of other models go on.

It reads a disk or a hub, which may take minutes or never answer. A thread that hangs can't be
ended: it is left behind, and its result is dropped.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class TimedCall(Generic[_T]):
    """Begins with its creation. Times are seconds on the monotonic clock."""

    def __init__(self, alias: str, call: Callable[[], _T], timeout_s: float) -> None:
        """`alias` is the model's."""
        self.alias, self.began_s, self._timeout_s = alias, time.perf_counter(), timeout_s
        self._call = call
        self._result: _T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"load-{alias}", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether `take` returns or raises."""
        is_late = time.perf_counter() - self.began_s > self._timeout_s
        return is_late or not self._thread.is_alive()

    def take(self) -> _T:
        """The result, once; raises what the call raised, or `ModelLoadError` when it is late."""
        if self._thread.is_alive():
            raise ModelLoadError(
                f"loading model {self.alias!r} took more than {self._timeout_s:g} s"
                " (SAG_LOAD_TIMEOUT_S): its disk or its hub does not answer"
            )
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        result, self._result = self._result, None
        return cast("_T", result)

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001  # of the model's jobs: `take` raises it
            self._error = error
