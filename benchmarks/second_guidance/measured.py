"""What a side says of its steps. Imports no torch: the parent of the sides reads it, too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """Steps of some tasks: medians, and what is the same in each."""

    wall_s: float
    #: On a CPU the processor time of all threads: what others do beside it counts little.
    cpu_s: float | None
    #: Rows of each UNet call.
    calls: tuple[int, ...]
