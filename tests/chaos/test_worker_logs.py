"""Logs are parsed, and processes are found by their variable."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

from tests.chaos import processes
from tests.chaos.site.patches import OFF_LINE
from tests.chaos.worker_logs import WorkerLogs, WorkerProcess

if TYPE_CHECKING:
    from pathlib import Path


def line(pid: int, message: str, **more: str) -> str:
    return json.dumps({"pid": pid, "message": message, "logger": "worker", **more}) + "\n"


def test_a_log_gives_ready_processes_and_claims(tmp_path: Path) -> None:
    """An incomplete line is read when it is complete; the last claim of an attempt counts."""
    log = tmp_path / "machine-0-1.log"
    logs = WorkerLogs()
    logs.add(log)
    logs.read()
    log.write_text(
        " -------------- celery@x\n" + line(5, "cpu@x ready.")
        + line(5, "task t attempt 1: claimed (fence 1)")[:-20]
    )  # fmt: skip
    logs.read()
    child = WorkerProcess("machine-0-1", 5)
    assert logs.ready(log) == child
    assert logs.loaded_s(child) is None
    log.write_text(
        " -------------- celery@x\n" + line(5, "cpu@x ready.")
        + line(5, "task t attempt 1: claimed (fence 1)")
        + line(5, "loaded model models/x on cpu in 0.2 s")
        + line(9, "cpu@x ready.") + line(9, "task t attempt 1: claimed (fence 2)")
        + line(9, "broken", traceback="Traceback\nValueError: x")
        + OFF_LINE % "fence" + "\n"
    )  # fmt: skip
    logs.read()
    assert logs.loaded_s(child) is not None
    assert logs.owner("t", 1) == logs.ready(log) == WorkerProcess("machine-0-1", 9)
    assert [(claim.fence, claim.child.pid) for claim in logs.claims] == [(1, 5), (2, 9)]
    assert dict(logs.tracebacks) == {"worker: ValueError: x": 1}
    assert logs.off == {"fence"}


def test_a_machine_is_ended_with_its_orphans() -> None:
    """Processes with the variable are killed, also when their parent is dead; no others are."""
    machine = uuid.uuid4().hex
    nap = "import subprocess, time; subprocess.Popen(['sleep', '60']); print(); time.sleep(60)"
    parent = subprocess.Popen(
        [sys.executable, "-uc", nap],
        env={**os.environ, processes.MARK: machine},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"\n"  # the child has executed
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
