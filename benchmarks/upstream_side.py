"""Upstream's pipeline as a side. Runs in a side's process; without one this imports no torch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks import model as models
from benchmarks.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

    from benchmarks.model import Model
    from benchmarks.tasks import Task


class UpstreamSide:
    """The pipeline as people run it, resident on the device."""

    def __init__(self, model: Model) -> None:
        models.silence_libraries()
        from benchmarks import upstream  # noqa: PLC0415  # imports torch, and warns

        self._pipeline, self._pictures = upstream.load(model), upstream.pictures

    def loop(self, tasks: Sequence[Task]) -> Turn:
        """One task after the other."""
        began_s = time.perf_counter()
        images = [self.pictures([task])[0] for task in tasks]
        return Turn(len(tasks) / (time.perf_counter() - began_s), images)

    def one_call(self, tasks: Sequence[Task]) -> Turn:
        """All tasks in one call."""
        began_s = time.perf_counter()
        images = self.pictures(tasks)
        return Turn(len(tasks) / (time.perf_counter() - began_s), images)

    def pictures(
        self, tasks: Sequence[Task], after_step: Callable[[], None] = lambda: None
    ) -> list[Image.Image]:
        """One call for all tasks; gives a picture of each."""
        return self._pictures(self._pipeline, tasks, after_step)
