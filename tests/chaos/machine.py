"""One machine: a supervisor with its processes behind proxy links, restarted when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos import processes

if TYPE_CHECKING:
    from tests.chaos.proxy import Link
    from tests.chaos.worker_logs import WorkerLogs, WorkerProcess

ROOT = Path(__file__).resolve().parents[2]
#: A worker's lease, in seconds: the tasks of a dead worker start again after about this time.
LEASE_S = 4
#: Pause before a supervisor that ended by itself is started again, in seconds.
RESTART_PAUSE_S = 2.0


@dataclass
class Machine:
    """One supervisor with its processes, behind proxy links of its own."""

    number: int
    redis: Link
    s3: Link
    environment: dict[str, str]
    folder: Path
    logs: WorkerLogs
    #: Value of `processes.MARK` in the environment of its processes.
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    #: When it is started again (monotonic seconds); None while it stays down.
    restart_at_s: float | None = None
    supervisor: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    starts: int = 0
    #: Whether its next end is caused by a fault or by the end of the run.
    expects_end: bool = True
    unexpected_ends: int = 0
    #: Living processes that were ready once.
    children: set[WorkerProcess] = field(default_factory=set)

    def start(self) -> None:
        """Start a supervisor in a session of its own, with a log of its own."""
        self.starts += 1
        self.log = self.folder / f"machine-{self.number}-{self.starts}.log"
        self.logs.add(self.log)
        with self.log.open("ab") as log:
            self.supervisor = subprocess.Popen(
                run_command(), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                env=self.environment | {processes.MARK: self.name}, start_new_session=True,
            )  # fmt: skip
        self.expects_end = False

    def expect_end(self, pause_s: float) -> None:
        """Note that its end is about to be caused; it starts again after `pause_s`."""
        self.expects_end, self.restart_at_s = True, time.monotonic() + pause_s

    def supervise(self) -> None:
        """Note which of its workers died; start it again when it is down and its pause is over."""
        self._count()
        if self.supervisor is None or self.supervisor.poll() is None or self.restart_at_s is None:
            return
        if not self.expects_end:
            self.unexpected_ends += 1
            self.expect_end(RESTART_PAUSE_S)
        if time.monotonic() >= self.restart_at_s:
            self.start()

    def _count(self) -> None:
        if self.log is not None and (child := self.logs.ready(self.log)) is not None:
            self.children.add(child)
        for child in [each for each in self.children if not processes.of(each.pid, self.name)]:
            self.children.discard(child)
            self.logs.deaths.setdefault(child, time.monotonic())

    def is_up(self) -> bool:
        """Whether its supervisor runs."""
        return self.supervisor is not None and self.supervisor.poll() is None

    def child(self) -> WorkerProcess | None:
        """The last process that got ready, if it lives and has built its model."""
        child = self.logs.ready(self.log) if self.log is not None else None
        if child is None or self.logs.loaded_s(child) is None or not self.is_up():
            return None
        return child if processes.of(child.pid, self.name) else None


@cache
def run_command() -> tuple[str, ...]:
    """The command that runs one worker; `--workers` where this version has the option."""
    command = (sys.executable, "-m", "worker", "run", "--device", "cpu")
    plain = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200"}
    shown = subprocess.run(
        [*command[:4], "--help"], capture_output=True, text=True, check=True, cwd=ROOT, env=plain
    )
    return (*command, "--workers", "1") if "--workers" in shown.stdout else command
