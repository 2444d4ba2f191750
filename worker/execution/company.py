"""Who may denoise beside whom: a task on its last attempt works alone.

What kills a process kills all that it was doing, and each of them has lost an attempt. The one at
fault must not use up the others' attempts too: on its last it takes nobody with it, and on theirs
the others are safe from it.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.job_control import Control

#: How soon one that waits for its turn sees that it is to stop, in seconds.
LOOK_S = 0.25


class ExclusiveAttempt:
    """The tasks of this process that are being denoised."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together, self._waiting_alone, self._is_alone = 0, 0, False

    @contextmanager
    def join(self, control: Control, *, alone: bool) -> Iterator[None]:
        """Be one of them, or the only one; raises `JobStopped` when asked to stop meanwhile."""
        with self._changed:
            self._waiting_alone += alone
            try:
                while not self._may(alone=alone):
                    control.obey(0)
                    self._changed.wait(LOOK_S)
            finally:
                self._waiting_alone -= alone
                self._changed.notify_all()
            self._together += 1
            self._is_alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._is_alone = False
                self._changed.notify_all()

    def _may(self, *, alone: bool) -> bool:
        if alone:
            return self._together == 0
        return not self._is_alone and self._waiting_alone == 0
