"""An object that a side serves in the tests. Imports little: the side's process imports it, too."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


class Counter:
    """Counts, tells its process, and misbehaves when asked."""

    def __init__(self, number: int) -> None:
        self.number = number

    def add(self, more: int) -> int:
        """Add to the sum, remember it, and return it."""
        self.number += more
        return self.number

    def pid(self) -> int:
        """The id of the process in which the counter lives."""
        return os.getpid()

    def fail(self) -> NoReturn:
        """Raise, as a pipeline may."""
        raise ValueError("no picture today")

    def die(self) -> None:
        """Kill the process, as a lack of memory does."""
        os.kill(os.getpid(), signal.SIGKILL)


class Unpicklable(Counter):
    """A counter that can't be sent to another process."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("stays here")
