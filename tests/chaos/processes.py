"""Finds processes by a variable in their environment, which children inherit. Linux only.

A process whose parent died gets another parent, but keeps its environment.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Environment variable whose value names the machine that a process belongs to.
MARK = "CHAOS_MACHINE"
#: Indices of fields in `/proc/<pid>/stat` after the command's name: state, start in clock ticks.
_STATE, _BORN = 0, 19


@dataclass(frozen=True)
class Process:
    """A process; its start time tells it from a later one with the same id."""

    pid: int
    #: Clock ticks since the machine started.
    born: int

    @property
    def is_alive(self) -> bool:
        """Whether it exists and is no zombie."""
        return _read(self.pid) == self

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False when the process is gone."""
        if not self.is_alive:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False


def marked(machine: str) -> list[Process]:
    """Every process of a machine, whatever its parent is now."""
    numbers = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [found for pid in numbers if (found := of(pid, machine)) is not None]


def of(pid: int, machine: str) -> Process | None:
    """The process with this id if it exists and belongs to the machine."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return None
    return _read(pid) if f"{MARK}={machine}".encode() in environment else None


def kill_all(machine: str, within_s: float = 10.0) -> int:
    """SIGKILL all processes of a machine until none is left; gives how many there were."""
    hit: set[Process] = set()
    deadline_s = time.monotonic() + within_s
    while left := marked(machine):
        assert time.monotonic() < deadline_s, f"{left} of {machine} do not end"
        for process in left:
            process.send(signal.SIGKILL)
        hit.update(left)
        time.sleep(0.02)
    return len(hit)


def _read(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in "ZX" else Process(pid, int(fields[_BORN]))
