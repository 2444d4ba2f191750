"""When a process is started again, and what is said of its end."""

from __future__ import annotations

import signal

import pytest

from worker.supervisor.restarts import pause_s, reason


def pauses(status: int, count: int) -> list[float]:
    """The pauses of a process that ends with `status` each time, as soon as it was started."""
    found: list[float] = []
    for _ in range(count):
        found.append(pause_s(status, 0.0, found[-1] if found else 0.0))
    return found


@pytest.mark.parametrize("status", [0, 1, -signal.SIGKILL, 255])
def test_pauses_double_up_to_a_minute(status: int) -> None:
    """Whoever ends at once is started after 0.1 s, then after twice as long, at most 60 s."""
    assert pauses(status, 12) == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]
    )


@pytest.mark.parametrize("status", [70, 75])
def test_what_is_likely_to_fail_again_begins_at_a_second(status: int) -> None:
    """After a device that failed and after a stall the first pause is 1 s; they double alike."""
    assert pauses(status, 8) == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause_s(status, 0.0, 0.2) == 1
    assert pause_s(1, 0.0, 4.0) == 8


@pytest.mark.parametrize(("status", "first_s"), [(1, 0.1), (70, 1.0)])
def test_a_minute_of_life_is_forgiven(status: int, first_s: float) -> None:
    """A process that has lived for 60 s begins anew, one that lived shorter does not."""
    assert pause_s(status, 60.0, 51.2) == first_s
    assert pause_s(status, 59.9, 51.2) == 60


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "status 0"),
        (2, "status 2, its settings are refused"),
        (70, "status 70, its device or its model fails"),
        (75, "status 75, it stalled"),
        (255, "status 255, the process that forked it is gone"),
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-35, "killed by signal 35"),
    ],
)
def test_a_status_is_told_in_words(status: int, words: str) -> None:
    """The log says what a status means, and the name of a signal."""
    assert reason(status) == words
