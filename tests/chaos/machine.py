"""One machine: a supervisor with its processes, over links of its own; kept up as init does."""

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
    from tests.chaos.journal import Child, Journal
    from tests.chaos.proxy import Link

ROOT = Path(__file__).resolve().parents[2]
#: A worker's lease, in seconds: a task of a dead worker starts again about so much later.
LEASE_S = 4
#: Pause before a supervisor that ended by itself is started again, in seconds.
BACK_S = 2.0


@dataclass
class Machine:
    """One supervisor with its processes, over links of its own."""

    number: int
    redis: Link
    s3: Link
    environment: dict[str, str]
    folder: Path
    journal: Journal
    #: Value of its processes' mark.
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    #: None while it is to stay down.
    back_at_s: float | None = None
    supervisor: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    starts: int = 0
    #: Whether whoever looks next finds an end that somebody meant.
    meant: bool = True
    fallen: int = 0
    #: Processes that were ready once and live.
    children: set[Child] = field(default_factory=set)

    def start(self) -> None:
        """Start a supervisor in a session of its own, with a log of its own."""
        self.starts += 1
        self.log = self.folder / f"machine-{self.number}-{self.starts}.log"
        self.journal.add(self.log)
        with self.log.open("ab") as log:
            self.supervisor = subprocess.Popen(
                run_command(), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                env=self.environment | {processes.MARK: self.name}, start_new_session=True,
            )  # fmt: skip
        self.meant = False

    def leave(self, back_s: float) -> None:
        """Its end, which somebody is about to cause, is meant; it comes back so much later."""
        self.meant, self.back_at_s = True, time.monotonic() + back_s

    def keep(self) -> None:
        """Note which of its workers have died; start it when it is down and due."""
        self._count()
        if self.supervisor is None or self.supervisor.poll() is None or self.back_at_s is None:
            return
        if not self.meant:
            self.fallen += 1
            self.leave(BACK_S)
        if time.monotonic() >= self.back_at_s:
            self.start()

    def _count(self) -> None:
        if self.log is not None and (child := self.journal.ready(self.log)) is not None:
            self.children.add(child)
        for child in [each for each in self.children if not processes.of(each.pid, self.name)]:
            self.children.discard(child)
            self.journal.deaths.setdefault(child, time.monotonic())

    def is_up(self) -> bool:
        """Whether its supervisor runs."""
        return self.supervisor is not None and self.supervisor.poll() is None

    def child(self) -> Child | None:
        """The process that was the last to get ready, when it lives and has built its model."""
        child = self.journal.ready(self.log) if self.log is not None else None
        if child is None or self.journal.loaded_s(child) is None or not self.is_up():
            return None
        return child if processes.of(child.pid, self.name) else None


@cache
def run_command() -> tuple[str, ...]:
    """The command that makes a machine serve with one worker, said in words where it can be."""
    command = (sys.executable, "-m", "worker", "run", "--device", "cpu")
    plain = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "200"}
    told = subprocess.run(
        [*command[:4], "--help"], capture_output=True, text=True, check=True, cwd=ROOT, env=plain
    )
    return (*command, "--workers", "1") if "--workers" in told.stdout else command
