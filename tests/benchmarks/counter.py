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
        """Remembers the sum."""
        self.number += more
        return self.number

    def pid(self) -> int:
        """Of the process that it lives in."""
        return os.getpid()

    def fail(self) -> NoReturn:
        """As a pipeline may."""
        raise ValueError("no picture today")

    def die(self) -> None:
        """As a process that is out of memory does."""
        os.kill(os.getpid(), signal.SIGKILL)


class Unpicklable(Counter):
    """Can't be sent."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("stays here")
