"""The rows of a call of any size: fewer after one that did not fit, and all again later."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.measured_models import PURE
from worker.engine.device.capacity import Capacity
from worker.engine.device.warmup import TRIED_ROWS

SIDE = st.integers(1, 128)
CAPACITIES = st.builds(Capacity, st.sampled_from(TRIED_ROWS), SIDE.map(lambda side: side * side))


@PURE
@given(found=CAPACITIES, height=SIDE, width=SIDE)
def test_rows_go_with_the_cells(found: Capacity, height: int, width: int) -> None:
    """The rows of any size have at most as many cells as the measured rows, or are one.

    They are as many as that allows, and at most `max_rows`.
    """
    rows, cells = found.limit(height, width), height * width
    assert 1 <= rows <= found.max_rows
    assert rows == 1 or rows * cells <= found.rows * found.cells
    assert rows == found.max_rows or (rows + 1) * cells > found.rows * found.cells
    assert found.limit(width, height) == rows
    assert found.limit(height + 1, width) <= rows


@PURE
@given(found=CAPACITIES, height=SIDE, width=SIDE, rows=st.integers(2, 64), other=SIDE)
def test_what_did_not_fit_is_not_tried_again(
    found: Capacity, height: int, width: int, rows: int, other: int
) -> None:
    """After an out of memory the limit for its size is lower, or 1; no other limit rises."""
    rows = min(rows, found.limit(height, width))
    less = found.halved(rows, height, width)
    assert less.limit(height, width) >= 1
    assert less.limit(height, width) < max(2, rows)
    assert less.limit(other, other) <= found.limit(other, other)


def after(calls: int, found: Capacity) -> Capacity:
    """The capacity after so many calls that fitted."""
    for _ in range(calls):
        found = found.after_call()
    return found


def test_a_lowered_limit_grows_back_carefully() -> None:
    """A lowered limit grows by a quarter after 100 calls that fit, or 200 if it failed again."""
    halved = Capacity(16, 64).halved(16, 8, 8)
    for wait, lowered in ((100, halved), (200, after(100, halved).halved(10, 8, 8))):
        rows = lowered.rows
        for step in range(3):
            assert after(wait * step + wait - 1, lowered).rows == rows * 1.25**step
            assert after(wait * step + wait, lowered).rows == rows * 1.25 ** (step + 1)


@pytest.mark.parametrize(("fitted", "wait"), [(99, 200), (100, 100)])
def test_measured_rows_are_trusted_after_one_more_wait(fitted: int, wait: int) -> None:
    """Until 100 calls have fitted at the measured rows, a failure counts as one after growth."""
    back = after(400 + fitted, Capacity(16, 64).halved(16, 8, 8))
    assert back.rows == 16
    again = back.halved(16, 8, 8)
    assert after(wait - 1, again).rows == 8
    assert after(wait, again).rows == 10


@pytest.mark.parametrize(("first", "calls"), [(8, 1000), (64, 1900)])
def test_one_incident_is_one(first: int, calls: int) -> None:
    """Calls that fail one after the other, each with half the rows, down to one, are one failure.

    From one row back to 8 it takes 1,000 calls, to 64 1,900: ten and 19 times 100.
    """
    whole = Capacity(first, 64)
    found, rows = whole, first
    while rows:
        found = found.halved(rows, 8, 8)
        rows //= 2
    assert found.rows == 1
    assert after(calls - 1, found).limit(8, 8) < first
    assert after(calls, found).limit(8, 8) == first
    assert after(calls + 100, found) == whole


def test_what_never_fits_is_tried_ever_more_rarely() -> None:
    """Where the measured rows do not fit any more, tries are twice as many calls apart each time.

    Up to 10,000 for each step by a quarter, of which there are four from a half.
    """
    found, failed_at = Capacity(16, 64), list[int]()
    for call in range(400_000):
        if found.limit(8, 8) == 16:
            failed_at.append(call)
            found = found.halved(16, 8, 8)
        found = found.after_call()
    pauses = [later - earlier for earlier, later in pairwise(failed_at)]
    assert pauses == [min(400 * 2**number, 40_000) for number in range(len(pauses))]


@PURE
@given(found=CAPACITIES, height=SIDE, width=SIDE, failures=st.lists(SIDE, max_size=12))
def test_no_incident_lasts(found: Capacity, height: int, width: int, failures: list[int]) -> None:
    """Whatever fails, a row is left, and 2,600 calls later all is as it was.

    It takes 25 steps to 64 rows from a row of a quarter of the measured cells, here the smallest.
    """
    half = (round(found.cells**0.5) + 1) // 2
    height, width = max(height, half), max(width, half)
    lowered = found
    for rows in failures:
        lowered = lowered.halved(rows, height, width)
        assert lowered.limit(height, width) >= 1
        assert lowered.rows >= min(1.0, height * width / found.cells)
    assert after(2_600, lowered) == found


def test_a_limit_that_fitted_stays() -> None:
    """Calls that fit change nothing of a capacity that was never lowered."""
    found = Capacity(16, 64)
    assert found.after_call() is found
