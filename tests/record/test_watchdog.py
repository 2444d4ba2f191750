"""The watchdog: a process whose device hangs gives back what it has, and ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from tests.record.owners import until
from worker.exit_codes import STALLED
from worker.recovery import watchdog as module
from worker.recovery.watchdog import Watchdog

#: A process that hangs in a function of this name; Redis hangs with it.
HANGS = """
import sys, threading, time
from worker import log, watchdog
from worker.recovery.watchdog import Watchdog
log.configure("text")
watchdog.GIVE_BACK_S = 0.2
began = time.monotonic()
def the_call_that_never_returns():
    while True: time.sleep(60)
def give_back():
    print("given back", flush=True)
    if sys.argv[1] == "redis hangs": the_call_that_never_returns()
    if sys.argv[1] == "redis fails": raise OSError("no Redis")
made = Watchdog(lambda: time.monotonic() - began, 0.3, give_back)
made.start()
the_call_that_never_returns()
"""


@pytest.mark.parametrize("how", ["redis is well", "redis hangs", "redis fails"])
def test_a_process_that_hangs_ends(how: str) -> None:
    """Everything is given back, what each thread was doing is told, the status says that it hung.

    It ends whether or not giving back works.
    """
    done = subprocess.run(
        [sys.executable, "-c", HANGS, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == STALLED
    assert done.stdout == "given back\n"
    assert "a step lasts longer than 0.3 s" in done.stderr
    assert "the_call_that_never_returns" in done.stderr


class Device:
    """A device whose step lasts as long as a test says."""

    def __init__(self) -> None:
        self.step_s, self.given, self.left = 0.0, 0, list[int]()
        self.watchdog = Watchdog(lambda: self.step_s, 5.0, self._give_back, self.left.append)

    def _give_back(self) -> None:
        self.given += 1


def test_a_step_in_time_is_let_be() -> None:
    """Up to its limit a step may last, and nothing happens."""
    device = Device()
    for step_s in (0.0, 4.9, 5.0):
        device.step_s = step_s
        assert not device.watchdog.look()
    assert (device.given, device.left) == (0, [])


def test_what_is_held_is_given_back_before_the_end() -> None:
    """In this order: afterwards there is nobody to do it."""
    device, order = Device(), list[str]()
    device.watchdog._give_back = lambda: order.append("given back")
    device.watchdog._leave = lambda status: order.append(f"left with {status}")
    device.step_s = 5.1
    assert device.watchdog.look()
    assert order == ["given back", f"left with {STALLED}"]


def test_the_end_waits_only_so_long_for_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that hangs is freed, though nothing can be given back."""
    monkeypatch.setattr(module, "GIVE_BACK_S", 0.2)
    device, go_on = Device(), threading.Event()

    def hang() -> None:
        go_on.wait()

    device.watchdog._give_back = hang
    device.step_s, began_s = 6.0, time.monotonic()
    assert device.watchdog.look()
    assert 0.2 <= time.monotonic() - began_s < 10
    assert device.left == [STALLED]
    go_on.set()


def test_the_thread_looks_by_itself() -> None:
    """It sees a step that hangs; closed, it sees nothing more."""
    device = Device()
    device.watchdog._timeout_s = 0.2
    device.watchdog.start()
    device.watchdog.start()
    device.step_s = 0.3
    until(lambda: device.left == [STALLED])
    closed = Device()
    closed.watchdog.close()
    closed.watchdog.start()
    assert closed.watchdog._thread is not None
    closed.watchdog._thread.join(10)
    closed.step_s = 99.0
    assert closed.left == []
