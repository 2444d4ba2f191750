"""One side's turn: what it made, how fast, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Turn:
    """A turn of any side; a side has not all of it."""

    images_per_s: float
    #: PIL images, in the order of the tasks.
    images: Sequence[Any] = ()
    #: Mean number of jobs in a step.
    batch: float | None = None
    #: Median of the tasks for each stage that the side has, in seconds.
    stages: dict[str, float] = field(default_factory=dict)
    #: Time of the engine's thread in a round, without the networks; see `host_time`.
    host_ms_a_round: float | None = None
    #: Processor time of the worker process by group of threads, in milliseconds per image.
    cpu_ms: dict[str, float] = field(default_factory=dict)
