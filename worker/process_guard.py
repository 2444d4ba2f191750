"""Kills the processes that this one started when it exits, for whatever reason (Linux).

For the demo, the tests, the benchmarks and the examples: after a SIGKILL, or a SIGTERM without a
handler, nothing else would stop their servers and workers. Every process started after
`guard_children` inherits a mark in its environment, as do its descendants. A guard process waits
until the marking process has exited and then kills every process with the mark.

A program that overwrites its environment with a process title is not found; for Redis
`worker.embedded.KEEP_ENVIRONMENT` prevents that.

The kernel's parent-death signal would not suffice: only direct children get it, it is sent when the
thread that started the child exits, and a frozen process does not react to SIGTERM.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The variable that holds the mark: the id of the marking process and a random part.
MARK = "PROCESS_GUARD_MARK"
#: Pause between two searches for marked processes, and the time after which the guard gives up on
#: one that the kernel cannot kill, in seconds.
POLL_INTERVAL_S, GIVE_UP_S = 0.05, 30.0


def guard_children() -> None:
    """Make the guard kill the processes started from now on when this one exits; idempotent.

    Under `make` this process is killed, too, when `make` exits first. Does nothing except on Linux.
    """
    pid = os.getpid()
    if sys.platform != "linux" or os.environ.get(MARK, "").startswith(f"{pid}-"):
        return
    mark = f"{pid}-{secrets.token_hex(8)}"
    os.environ[MARK] = mark
    parent = os.getppid()  # 0 is a process outside of this container
    watched = [pid, parent] if "MAKELEVEL" in os.environ and parent else [pid]
    # -I and -S: the guard imports nothing but the standard library. It inherits no mark, and no
    # file: it would keep the pipes of this process open.
    command = [sys.executable, "-I", "-S", __file__, mark, *map(str, watched)]
    environment = {name: os.environ[name] for name in os.environ if name == "LD_LIBRARY_PATH"}
    files = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    os.posix_spawn(command[0], command, environment, file_actions=files, setsid=True)


def _guard(mark: str, watched: Sequence[int]) -> None:
    """Wait until one of `watched` exits; kill the first of them and every marked process."""
    pidfds: list[int] = []
    with suppress(ProcessLookupError):  # one has exited already
        pidfds.extend(map(os.pidfd_open, watched))
        select.select(pidfds, [], [])
    if pidfds:  # by its pidfd: after the process exited, its id may be another's
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfds[0], signal.SIGKILL)
    give_up_at_s = time.monotonic() + GIVE_UP_S
    while (marked := _marked(mark)) and time.monotonic() < give_up_at_s:
        for pid in marked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_INTERVAL_S)


def _marked(mark: str) -> list[int]:
    """Return the ids of the running processes whose environment has the mark."""
    variable, found = f"{MARK}={mark}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if variable in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    _guard(sys.argv[1], [int(each) for each in sys.argv[2:]])
