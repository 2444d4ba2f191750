"""How long after its exit a process is restarted, and how an exit is described."""

from __future__ import annotations

import signal

import pytest

from worker.supervisor.process_manager import describe_exit, restart_pause_s


def pauses(status: int, count: int) -> list[float]:
    """The pauses of a process that exits with `status` as soon as it is started."""
    found: list[float] = []
    for _ in range(count):
        found.append(restart_pause_s(status, 0.0, found[-1] if found else 0.0))
    return found


@pytest.mark.parametrize("status", [0, 1, -signal.SIGKILL, 255])
def test_pauses_double_up_to_a_minute(status: int) -> None:
    """A process that exits at once is restarted after 0.1 s, then twice as long, at most 60 s."""
    assert pauses(status, 12) == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]
    )


@pytest.mark.parametrize("status", [70, 75])
def test_a_likely_repetition_begins_with_a_second(status: int) -> None:
    """After a device failure and after a stall the first pause is 1 s; it doubles all the same."""
    assert pauses(status, 8) == [1, 2, 4, 8, 16, 32, 60, 60]
    assert restart_pause_s(status, 0.0, 0.2) == 1
    assert restart_pause_s(1, 0.0, 4.0) == 8


@pytest.mark.parametrize(("status", "first_s"), [(1, 0.1), (70, 1.0)])
def test_a_minute_of_uptime_resets_the_pause(status: int, first_s: float) -> None:
    """After 60 s of uptime the pause is the first one again, after less it is not."""
    assert restart_pause_s(status, 60.0, 51.2) == first_s
    assert restart_pause_s(status, 59.9, 51.2) == 60


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "status 0"),
        (2, "status 2, its settings are refused"),
        (70, "status 70, its device or its model fails"),
        (75, "status 75, it stalled"),
        (255, "status 255, its fork server died first"),
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-35, "killed by signal 35"),
    ],
)
def test_an_exit_status_is_described(status: int, words: str) -> None:
    """The log has the meaning of a status, or the name of the signal."""
    assert describe_exit(status) == words
