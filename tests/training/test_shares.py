"""Shares say how sure they are."""

from __future__ import annotations

import pytest

from training.judge import Verdict
from training.shares import of_verdicts, share


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (95, 100, 0.8882, 0.9785),
        (1, 2, 0.0945, 0.9055),
    ],
)
def test_wilson_intervals(right: int, of: int, low: float, high: float) -> None:
    """The interval is Wilson's, also where nothing or everything is right."""
    counted = share(right, of)
    # Published tables have four digits.
    assert (counted.low, counted.high) == pytest.approx((low, high), rel=0, abs=0.5e-4)


def test_a_share_of_nothing_is_an_error() -> None:
    """No pictures have no share."""
    with pytest.raises(ValueError, match="no pictures"):
        share(0, 0)


def test_everything_needs_every_attribute() -> None:
    """A picture is right in everything only when no attribute is wrong."""
    right = Verdict(background=True, colour=True, shape=True, size=True, place=True)
    wrong = Verdict(background=True, colour=True, shape=True, size=True, place=False)
    shares = of_verdicts([right, wrong])
    assert (shares["place"].right, shares["everything"].right, shares["shape"].right) == (1, 1, 2)
