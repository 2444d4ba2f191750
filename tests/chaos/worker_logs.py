"""Reads the workers' logs: which process is ready, claims, tracebacks."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.site.patches import OFF_LINE

if TYPE_CHECKING:
    from pathlib import Path

_BUILT = re.compile(r"loaded model .+ on \S+ in ")
_CLAIMED = re.compile(r"task (\S+) attempt (\d+): claimed \(fence (\d+)\)")
_READY = re.compile(r" ready\.$")
_TURNED_OFF = re.compile(re.escape(OFF_LINE).replace("%s", r"(\w+)"))


@dataclass(frozen=True)
class WorkerProcess:
    """A worker process: its log and its id, as ids are used again."""

    log: str
    pid: int

    def __str__(self) -> str:
        return f"{self.log}/{self.pid}"


@dataclass(frozen=True)
class Claim:
    """A log line `claimed`, and when it was read (monotonic seconds)."""

    task_id: str
    attempt: int
    fence: int
    child: WorkerProcess
    seen_at_s: float


@dataclass
class _Log:
    path: Path
    offset: int = 0
    ready: WorkerProcess | None = None


@dataclass
class WorkerLogs:
    """All logs, one for each start of a supervisor. Thread-safe."""

    claims: list[Claim] = field(default_factory=list)
    #: When a process that had been ready was found dead (monotonic seconds).
    deaths: dict[WorkerProcess, float] = field(default_factory=dict)
    #: The last lines of tracebacks, and how often each came.
    tracebacks: Counter[str] = field(default_factory=Counter)
    #: Mechanisms that some process logged as turned off.
    off: set[str] = field(default_factory=set)
    _logs: dict[str, _Log] = field(default_factory=dict)
    _loads: dict[WorkerProcess, float] = field(default_factory=dict)
    _owners: dict[tuple[str, int], Claim] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, path: Path) -> None:
        """Read this log too."""
        with self._lock:
            self._logs[path.stem] = _Log(path)

    def read(self) -> None:
        """Parse the lines that were written since the last call."""
        with self._lock:
            for log in self._logs.values():
                if not log.path.exists() or log.path.stat().st_size == log.offset:
                    continue
                with log.path.open("rb") as file:
                    file.seek(log.offset)
                    whole, end, _ = file.read().rpartition(b"\n")
                log.offset += len(whole) + len(end)
                for line in whole.decode(errors="replace").splitlines():
                    self._parse(log, line)

    def ready(self, path: Path) -> WorkerProcess | None:
        """The last process that logged there that it is ready."""
        with self._lock:
            return self._logs[path.stem].ready

    def loaded_s(self, child: WorkerProcess) -> float | None:
        """When a process had built its model (monotonic seconds); None before.

        It builds its model for the first task that it claims.
        """
        with self._lock:
            return self._loads.get(child)

    def owner(self, task_id: str, attempt: int) -> WorkerProcess | None:
        """The last process that claimed this attempt, which may have been requeued before."""
        with self._lock:
            claim = self._owners.get((task_id, attempt))
        return claim.child if claim else None

    def _parse(self, log: _Log, line: str) -> None:
        if turned_off := _TURNED_OFF.search(line):
            self.off.add(turned_off[1])
        try:
            entry = json.loads(line)
            pid, message = int(entry["pid"]), str(entry["message"])
        except (ValueError, TypeError, KeyError):  # Celery's banner, or a warning
            return
        child = WorkerProcess(log.path.stem, pid)
        if "traceback" in entry:
            last = str(entry["traceback"]).rstrip().rpartition("\n")[2]
            self.tracebacks[f"{entry.get('logger')}: {last[:160]}"] += 1
        if _READY.search(message):
            log.ready = child
        elif _BUILT.match(message):
            self._loads.setdefault(child, time.monotonic())
        elif claimed := _CLAIMED.match(message):
            now_s = time.monotonic()
            claim = Claim(claimed[1], int(claimed[2]), int(claimed[3]), child, now_s)
            self.claims.append(claim)
            known = self._owners.get((claim.task_id, claim.attempt))
            if known is None or known.fence < claim.fence:
                self._owners[claim.task_id, claim.attempt] = claim
