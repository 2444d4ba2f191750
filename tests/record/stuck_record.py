"""A record whose writes wait, and what is posted to a publisher."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tests.record.owners import PROGRESS
from worker.record.task_record import TaskRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.record.claim import NewCheckpoint, NewEvent, WriteAnswer

LOADING, UPLOADING = {"seconds_so_far": 0.1}, {"images": 1}


def step(number: int) -> dict[str, Any]:
    """The fields of a progress event."""
    return {**PROGRESS, "step": number, "total_steps": 100}


class Stuck(TaskRecord):
    """A record whose writes wait until `go_on`."""

    def stick(self) -> None:
        """Block writes from now on."""
        self.reached, self.go_on = threading.Event(), threading.Event()
        #: What each call was given.
        self.calls: list[list[NewEvent | NewCheckpoint]] = []

    def write(self, writes: Sequence[NewEvent | NewCheckpoint]) -> list[WriteAnswer | Exception]:
        """Signal that the write was reached, wait, then write."""
        self.calls.append(list(writes))
        self.reached.set()
        assert self.go_on.wait(10)
        return super().write(writes)
