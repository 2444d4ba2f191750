"""What the harness makes of logs, and that it finds processes by their mark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

from tests.chaos import processes
from tests.chaos.journal import Child, Journal
from tests.chaos.site.patches import SAID

if TYPE_CHECKING:
    from pathlib import Path


def line(pid: int, message: str, **more: str) -> str:
    return json.dumps({"pid": pid, "message": message, "logger": "worker", **more}) + "\n"


def test_a_log_tells_who_is_ready_and_who_claimed_what(tmp_path: Path) -> None:
    """Half a line waits for its end; the last claim of an attempt is its owner's."""
    log = tmp_path / "machine-0-1.log"
    journal = Journal()
    journal.add(log)
    journal.read()
    log.write_text(
        " -------------- celery@x\n" + line(5, "cpu@x ready.")
        + line(5, "task t attempt 1: claimed (fence 1)")[:-20]
    )  # fmt: skip
    journal.read()
    child = Child("machine-0-1", 5)
    assert journal.ready(log) == child
    assert journal.loaded_s(child) is None
    log.write_text(
        " -------------- celery@x\n" + line(5, "cpu@x ready.")
        + line(5, "task t attempt 1: claimed (fence 1)")
        + line(5, "built models/x on cpu in 0.2 s")
        + line(9, "cpu@x ready.") + line(9, "task t attempt 1: claimed (fence 2)")
        + line(9, "broken", traceback="Traceback\nValueError: x")
        + SAID % "fence" + "\n"
    )  # fmt: skip
    journal.read()
    assert journal.loaded_s(child) is not None
    assert journal.owner("t", 1) == journal.ready(log) == Child("machine-0-1", 9)
    assert [(claim.fence, claim.child.pid) for claim in journal.claims] == [(1, 5), (2, 9)]
    assert dict(journal.tracebacks) == {"worker: ValueError: x": 1}
    assert journal.off == {"fence"}


def test_a_machine_is_ended_with_its_orphans() -> None:
    """Who has the mark is found and killed, also when its parent is dead; nobody else is."""
    machine = uuid.uuid4().hex
    nap = "import subprocess, time; subprocess.Popen(['sleep', '60']); print(); time.sleep(60)"
    parent = subprocess.Popen(
        [sys.executable, "-uc", nap],
        env={**os.environ, processes.MARK: machine},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"\n"  # until then the child may not be what it becomes
    parent.stdout.close()
    while len(processes.marked(machine)) < 2:
        assert parent.poll() is None
    first = processes.of(parent.pid, machine)
    assert first is not None
    assert processes.of(os.getpid(), machine) is None
    assert first.send(signal.SIGKILL)
    parent.wait()
    assert not first.send(signal.SIGKILL)
    assert processes.kill_all(machine) == 1
    assert processes.marked(machine) == []
