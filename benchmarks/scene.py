"""A newcomer among tasks that run: who had done how much when it came, began and ended."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.tasks import Task


@dataclass(frozen=True)
class Wait:
    """What the newcomer saw, counted from its arrival."""

    #: To the end of its first step.
    first_step_s: float
    #: To its picture.
    end_s: float
    #: Steps that all others together, and the busiest of them alone, did before its first.
    steps_of_all_others_before: int
    steps_of_one_other_before: int
    #: Mean time of the others, from their common start to their pictures: what the newcomer cost.
    others_end_s: float


class Scene:
    """Told by the side that runs what happens, from any thread."""

    def __init__(self, others: Sequence[Task]) -> None:
        """The others start now."""
        self.half_way = threading.Event()
        self._half_steps = sum(task.num_inference_steps for task in others) / 2
        self._lock = threading.Lock()
        self._steps: Counter[int] = Counter()
        self._at_arrival: Counter[int] = Counter()
        self._at_first: Counter[int] | None = None
        self._began_s = time.perf_counter()
        self._arrived_s: float | None = None
        self._first_s = self._ended_s = 0.0
        self._others_end_s: list[float] = []
        self._waiting = len(others) + 1
        self._all_ended = threading.Event()

    def other_stepped(self, seed: int) -> None:
        """One of the others, known by its seed, has done a step."""
        with self._lock:
            self._steps[seed] += 1
            if self._steps.total() >= self._half_steps:
                self.half_way.set()

    def other_ended(self, *, failed: bool = False) -> None:
        """One of the others has ended; a failed one ends the wait for half-way."""
        with self._lock:
            self._others_end_s.append(time.perf_counter() - self._began_s)
            self._count_down()
        if failed:
            self.half_way.set()

    def arrive(self) -> None:
        """The newcomer is there; saying it again changes nothing."""
        with self._lock:
            if self._arrived_s is None:
                self._at_arrival = self._steps.copy()
                self._arrived_s = time.perf_counter()

    def stepped(self) -> None:
        """The newcomer has done a step."""
        with self._lock:
            if self._at_first is None:
                self._first_s = time.perf_counter()
                self._at_first = self._steps.copy()

    def ended(self) -> None:
        """The newcomer has its picture."""
        with self._lock:
            self._ended_s = time.perf_counter()
            self._count_down()

    def wait(self) -> Wait:
        """What it saw, when everybody has ended: a future's callbacks run after its waiters."""
        self._all_ended.wait()
        assert self._arrived_s is not None
        assert self._at_first is not None
        between = self._at_first - self._at_arrival
        return Wait(
            first_step_s=self._first_s - self._arrived_s,
            end_s=self._ended_s - self._arrived_s,
            steps_of_all_others_before=between.total(),
            steps_of_one_other_before=max(between.values(), default=0),
            others_end_s=mean(self._others_end_s),
        )

    def _count_down(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._all_ended.set()
