"""How long tasks may take to end, by the signals that came."""

from __future__ import annotations

import pytest

from worker.runtime import drain_s


@pytest.mark.parametrize(
    ("asked_s", "expected_s"),
    [
        ([5.0], 30.0),
        ([5.0, 5.0], 30.0),
        ([5.0, 5.9], 30.0),
        ([5.0, 6.1], 0.0),
        ([5.0, 5.5, 6.2], 0.0),
    ],
)
def test_a_second_wish_to_stop_ends_the_drain(asked_s: list[float], expected_s: float) -> None:
    """The first signal gives tasks the drain, another gives none; within a second it is an echo."""
    assert drain_s(asked_s, 30.0) == expected_s
