"""The watchdog: a process whose device hangs reports its tasks, and ends."""

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

#: A process that hangs in a function of this name; its Redis hangs, too.
HANGS = """
import time
from worker import logs
from worker.recovery import watchdog
logs.configure("text")
watchdog.REPORT_TIMEOUT_S = 0.2
began = time.monotonic()
def the_call_that_never_returns():
    while True: time.sleep(60)
def report(reason):
    print("reported", flush=True)
    the_call_that_never_returns()
def stall():
    return "a step lasts longer than 0.3 s" if time.monotonic() - began > 0.3 else None
made = watchdog.Watchdog(stall, report, pause_s=0.05)
made.start()
the_call_that_never_returns()
"""


def test_a_process_that_hangs_ends() -> None:
    """The log has the stacks of all threads, and the exit status says that it hung.

    It ends though its tasks can't be reported.
    """
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == STALLED, done.stderr
    assert done.stdout == "reported\n"
    assert "a step lasts longer than 0.3 s" in done.stderr
    assert "the_call_that_never_returns" in done.stderr


class Device:
    """A device that hangs when a test says."""

    def __init__(self, pause_s: float = 5.0) -> None:
        self.stall: str | None = None
        self.calls = list[str]()
        self.watchdog = Watchdog(
            lambda: self.stall,
            lambda reason: self.calls.append(f"reported {reason}"),
            lambda status: self.calls.append(f"left with {status}"),
            pause_s=pause_s,
        )


def test_a_device_that_works_is_left_alone() -> None:
    """A check of a device that works does nothing."""
    device = Device()
    device.watchdog.check()
    assert device.calls == []


def test_tasks_are_reported_before_the_end() -> None:
    """A stall's tasks are reported before the process ends, as its reason is lost afterwards."""
    device = Device()
    device.stall = "it hangs"
    device.watchdog.check()
    assert device.calls == ["reported it hangs", f"left with {STALLED}"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_ends_when_redis_fails() -> None:
    """A report that raises does not keep the process."""
    device = Device()

    def fail(_: str) -> None:
        raise OSError("no Redis")

    device.watchdog._on_stall = fail
    device.stall = "it hangs"
    device.watchdog.check()
    assert device.calls == [f"left with {STALLED}"]


def test_the_end_waits_for_redis_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that hangs delays the end only for a while, so that the device is freed."""
    monkeypatch.setattr(module, "REPORT_TIMEOUT_S", 0.2)
    device, go_on = Device(), threading.Event()

    def hang(_: str) -> None:
        go_on.wait()

    device.watchdog._on_stall = hang
    device.stall, began_s = "it hangs", time.monotonic()
    device.watchdog.check()
    assert 0.2 <= time.monotonic() - began_s < 10
    assert device.calls == [f"left with {STALLED}"]
    go_on.set()


def test_the_thread_checks_by_itself() -> None:
    """The watchdog's thread ends a stalled process once, and never after it is closed."""
    device = Device(0.2)
    device.watchdog.start()
    device.stall = "it hangs"
    until(lambda: device.calls == ["reported it hangs", f"left with {STALLED}"])
    device.watchdog._thread.join(10)
    closed = Device(0.2)
    closed.stall = "it hangs"
    closed.watchdog.close()
    closed.watchdog.start()
    closed.watchdog._thread.join(10)
    assert closed.calls == []
