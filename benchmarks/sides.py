"""Two or more ways to do the same, measured in turns, and how they compare."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from benchmarks.record import rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.record import Cell

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))

    def cells(self, name: str) -> dict[str, Cell]:
        """As three columns of a row."""
        return {
            name: rounded(self.median),
            f"{name}_low": rounded(self.low),
            f"{name}_high": rounded(self.high),
        }


def alternate(sides: Sequence[Callable[[], Measured]], repeats: int) -> list[list[Measured]]:
    """Call each side `repeats` times, in turns; gives what each gave, side by side.

    Every other round goes backwards, so that a machine that warms up or slows down favours none.
    """
    found: list[list[Measured]] = [[] for _ in sides]
    for number in range(repeats):
        turns = list(enumerate(sides))
        for side, measure in reversed(turns) if number % 2 else turns:
            found[side].append(measure())
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The ratio of two sides' medians, and the lowest and highest ratio within one round."""
    each = [one / other for one, other in zip(over, under, strict=True)]
    return Spread(median(over) / median(under), min(each), max(each))
