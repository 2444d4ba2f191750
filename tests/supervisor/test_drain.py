"""The time that tasks have to finish, by the signals received."""

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
def test_a_second_signal_ends_the_drain(asked_s: list[float], expected_s: float) -> None:
    """The first signal starts the drain, a second one ends it unless within a second."""
    assert drain_s(asked_s, 30.0) == expected_s
