"""After a stop signal the process exits within its limit, whatever its threads wait for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from worker.recovery import exit_deadline
from worker.recovery.exit_deadline import ExitDeadline

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        """The time, in seconds."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(exit_deadline, "time", clock)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    return clock


def left_at(clock: Clock, is_busy: Callable[[], bool], drain_s: float = 30.0) -> tuple[float, int]:
    """When and with which status the process is left; the time counts from the order to end."""
    left: list[tuple[float, int]] = []
    done = threading.Event()

    def leave(status: int) -> None:
        left.append((clock.now_s - 100.0, status))
        done.set()

    deadline = ExitDeadline(is_busy, timeout_s=90.0, leave=leave)
    deadline.set(drain_s, status=7)
    deadline.set(drain_s, status=8)  # a second signal
    assert done.wait(30)
    ((at_s, status),) = left
    return at_s, status


def test_a_process_without_tasks_has_some_seconds(clock: Clock) -> None:
    """A process without tasks has 20 s to exit, not the drain's; the first status counts."""
    at_s, status = left_at(clock, lambda: False)
    assert at_s == pytest.approx(20.0, abs=0.2)  # a pause between two checks
    assert status == 7


def test_a_process_whose_task_never_ends_has_the_timeout(clock: Clock) -> None:
    """A process whose task never ends exits at the timeout, counted from the end of the drain."""
    at_s, status = left_at(clock, lambda: True)
    assert at_s == pytest.approx(120.0, abs=0.2)  # a pause between two checks
    assert status == 7


def test_the_last_task_ends_the_wait(clock: Clock) -> None:
    """After its last task a process has the seconds of one without tasks, within the timeout."""
    at_s, _ = left_at(clock, lambda: clock.now_s < 110.0)
    assert at_s == pytest.approx(30.0, abs=0.2)
    clock.now_s = 100.0
    at_s, _ = left_at(clock, lambda: clock.now_s < 215.0)
    assert at_s == pytest.approx(120.0, abs=0.2)


def test_a_task_that_begins_after_the_order_has_its_drain(clock: Clock) -> None:
    """A task that begins after the order has its drain: the 20 s without tasks begin again."""
    at_s, _ = left_at(clock, lambda: 105.0 < clock.now_s < 112.0 or 125.0 < clock.now_s < 127.0)
    assert at_s == pytest.approx(47.0, abs=0.2)
