"""Counted verdicts as shares with their 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from training.judge import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTRIBUTES = tuple(field.name for field in fields(Verdict))
#: The 97.5th percentile of the normal distribution.
Z_95 = 1.959964


@dataclass(frozen=True)
class Share:
    """`right` pictures `of` so many, and Wilson's 95 % interval of the share, all 0 to 1."""

    right: int
    of: int
    share: float
    low: float
    high: float


def share(right: int, of: int) -> Share:
    """A share with its Wilson score interval (Wilson 1927); raises ValueError when `of` is 0."""
    if of < 1:
        message = "a share of no pictures is undefined"
        raise ValueError(message)
    p, z2 = right / of, Z_95**2
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = Z_95 / (1 + z2 / of) * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Share(right, of, round(p, 4), round(low, 4), round(high, 4))


def of_verdicts(verdicts: Sequence[Verdict]) -> dict[str, Share]:
    """The share of pictures right in each attribute, and in `everything`."""
    return {
        name: share(sum(getattr(verdict, name) for verdict in verdicts), len(verdicts))
        for name in (*ATTRIBUTES, "everything")
    }
