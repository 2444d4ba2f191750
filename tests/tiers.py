"""A pytest plugin that keeps the fast tier fast: a test above 2 s must be marked `slow`.

A test's time is that of its own body and of the fixtures made for it alone; fixtures that others
share, the end of fixtures, and the time in which any process waited for a disk are left out. The
limit grows with what the machine does beside: it is multiplied by the mean number of runnable
processes for each processor during the test, by the share that a hypervisor took, and by how much
slower the processor is than the one it was set on.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Longest time for a test without a mark, on an idle machine, in seconds.
LIMIT_S = 2.0
#: The variable by which make allows more, since machines differ and their load is measured roughly;
#: most beside tests that start workers.
ALLOWANCE = "TIERS_ALLOWANCE"
#: Markers that allow more.
SLOW = ("slow", "nightly")
#: Pause between two looks at the number of runnable processes, in seconds.
SAMPLE_INTERVAL_S = 0.2
#: What `spin_s` gives on one core of an idle Intel Xeon, where `LIMIT_S` was chosen.
REFERENCE_SPIN_S = 0.034
#: How much longer a test takes while coverage traces it and its processes.
COVERAGE_FACTOR = 2.0


@dataclass(frozen=True)
class Usage:
    """Totals since some moment: samples of runnable processes, and the kernel's ticks."""

    samples: int
    #: Sum of the samples, each divided by the number of processors and at least 1.
    load: float
    ticks: int
    stolen_ticks: int
    #: Time in which at least one process waited for a disk, in seconds; 0 where it is not known.
    disk_s: float = 0.0

    def factor_to(self, later: Usage) -> float:
        """How much longer than alone things took between two moments; at least 1."""
        samples, ticks = later.samples - self.samples, later.ticks - self.ticks
        load = (later.load - self.load) / samples if samples else 1.0
        stolen = (later.stolen_ticks - self.stolen_ticks) / ticks if ticks else 0.0
        return load / max(0.1, 1.0 - stolen)


class Machine:
    """Watches how busy this machine is, on a thread of its own."""

    def __init__(self) -> None:
        """Begins to watch."""
        self._samples, self._load = 0, 0.0
        self._processors = len(os.sched_getaffinity(0))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="load", daemon=True)
        self._thread.start()

    def usage(self) -> Usage:
        """The totals now."""
        ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return Usage(self._samples, self._load, sum(ticks), ticks[7], disk_s())

    def factor(self, since: Usage) -> float:
        """How much longer a test may have taken than where `LIMIT_S` was chosen."""
        slower = max(1.0, spin_s() / REFERENCE_SPIN_S)
        traced = COVERAGE_FACTOR if sys.gettrace() is not None else 1.0
        allowance = float(os.environ.get(ALLOWANCE, "1"))
        return since.factor_to(self.usage()) * slower * traced * allowance

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(SAMPLE_INTERVAL_S):
            runnable = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
            self._load += max(1.0, (runnable - 1) / self._processors)  # one is this thread
            self._samples += 1


def disk_s() -> float:
    """Time since the machine started in which some process waited for a disk."""
    pressure = Path("/proc/pressure/io")
    if not pressure.exists():
        return 0.0
    return int(pressure.read_text().split("\n")[0].rpartition("total=")[2]) / 1e6


def spin_s() -> float:
    """Processor time of a fixed piece of work, the best of three."""
    best = float("inf")
    for _ in range(3):
        began_s, total = time.thread_time(), 0
        for number in range(400_000):
            total += number * number & 7
        best = min(best, time.thread_time() - began_s)
    return best


class Tiers:
    """Times each test and fails those that take too long."""

    def __init__(self, machine: Machine, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._machine, self._clock = machine, clock
        self._shared_s = 0.0
        self._depth = 0
        self._began: tuple[float, Usage] = (0.0, self._machine.usage())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        """The test's time begins."""
        self._shared_s = 0.0
        self._began = self._clock(), self._machine.usage()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Time of a fixture that others share is not the test's."""
        if fixturedef.scope == "function" or self._depth:
            return (yield)
        began_s = self._clock()
        self._depth += 1
        try:
            return (yield)
        finally:
            self._depth -= 1
            self._shared_s += self._clock() - began_s

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        """After the body: fail the test if it took too long."""
        report: Any = yield
        if call.when == "call" and report.passed:
            began_s, usage = self._began
            waited_s = self._machine.usage().disk_s - usage.disk_s
            took_s = self._clock() - began_s - self._shared_s - waited_s
            if took_s > LIMIT_S and not any(map(item.get_closest_marker, SLOW)):
                factor = self._machine.factor(usage)
                if took_s > LIMIT_S * factor:
                    report.outcome = "failed"
                    report.longrepr = (
                        f"{item.nodeid} took {took_s:.1f} s; the limit is {LIMIT_S:g} s times "
                        f"{factor:.1f} for this machine's load: mark it slow or make it faster"
                    )
        return report  # type: ignore[no-any-return]  # pytest's own

    @pytest.hookimpl
    def pytest_unconfigure(self) -> None:
        """Stop watching."""
        self._machine.close()


def pytest_configure(config: pytest.Config) -> None:
    """Time tests where they run: in xdist's processes, not in the one that distributes them."""
    distributes = getattr(config.option, "dist", "no") != "no"
    if sys.platform == "linux" and not distributes:
        config.pluginmanager.register(Tiers(Machine()), "tiers")
