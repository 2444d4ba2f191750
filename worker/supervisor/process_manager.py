"""Keeps one worker process running in each slot: starts, restarts, stops and kills them.

Does no waiting: the caller passes the time and the function that starts a process.
"""

from __future__ import annotations

import logging
import math
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker import metrics
from worker.exit_codes import DEVICE_FAILED, INVALID, STALLED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.supervisor.child_process import ChildProcess

logger = logging.getLogger(__name__)

#: The first restart pause of a slot in seconds. It doubles with each exit up to `MAX_PAUSE_S`, and
#: starts over once a process has run for `RESET_AFTER_S`.
MIN_PAUSE_S, MAX_PAUSE_S, RESET_AFTER_S = 0.1, 60.0, 60.0
#: The first restart pause after an exit that is likely to repeat, in seconds.
_MIN_PAUSE_S = {DEVICE_FAILED: 1.0, STALLED: 1.0}
#: multiprocessing's status for a process whose fork server died first.
_UNKNOWN = 255
_REASONS = {
    INVALID: "its settings are refused",
    DEVICE_FAILED: "its device or its model fails",
    STALLED: "it stalled",
    _UNKNOWN: "its fork server died first",
}


@dataclass
class WorkerSlot:
    """A place for one worker process. Times are on the caller's clock, in seconds."""

    environment: Mapping[str, str]
    process: ChildProcess | None = None
    started_at_s: float = 0.0
    #: The latest restart pause, and the earliest time of the next start.
    pause_s: float = 0.0
    start_at_s: float = -math.inf


class ProcessManager:
    """Keeps one process in each slot until `stop` is called."""

    def __init__(
        self,
        environments: Mapping[str, Mapping[str, str]],
        start: Callable[[str, Mapping[str, str]], ChildProcess],
        on_exit: Callable[[str, float], None],
        grace_s: float,
    ) -> None:
        """Create a slot for each name in `environments`, with the variables that it adds.

        `start` may raise `OSError` or `EOFError`; it is called again after a pause. `on_exit` gets
        the owner of a process that exited, and the time. A process that still runs `grace_s` after
        the first `stop` is killed.
        """
        self._slots = {name: WorkerSlot(extra) for name, extra in environments.items()}
        for name in self._slots:
            metrics.RESTARTS.labels(name)  # 0: Prometheus sees no increase in one that begins at 1
        self._start, self._on_exit, self._grace_s = start, on_exit, grace_s
        self._kill_at_s: float | None = None
        #: Exit status of the supervisor: 2 when a process refused its settings, else 0.
        self.status = 0

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called; no more processes are started."""
        return self._kill_at_s is not None

    @property
    def has_stopped(self) -> bool:
        """Whether every process has exited and none will be started."""
        return self.is_stopping and not any(self._running())

    def step(self, now_s: float) -> None:
        """Check each process once; start, restart and kill what is due."""
        for name, slot in self._slots.items():
            if slot.process is not None:
                self._check(name, slot, slot.process, now_s)
            if slot.process is None and not self.is_stopping and now_s >= slot.start_at_s:
                self._fill(name, slot, now_s)
        if self._kill_at_s is not None and now_s >= self._kill_at_s:
            self._kill_at_s = math.inf
            for process in self._running():
                logger.error("process %d did not stop in time; killing it", process.pid)
                process.send_signal(signal.SIGKILL)

    def stop(self, now_s: float) -> None:
        """Send SIGTERM to each process, again with each call, and start no more."""
        if self._kill_at_s is None:
            self._kill_at_s = now_s + self._grace_s
        for process in self._running():
            process.send_signal(signal.SIGTERM)

    def _running(self) -> Iterator[ChildProcess]:
        return (slot.process for slot in self._slots.values() if slot.process is not None)

    def _fill(self, name: str, slot: WorkerSlot, now_s: float) -> None:
        try:
            slot.process = self._start(name, slot.environment)
        except (OSError, EOFError) as error:
            self._schedule(slot, 1, 0.0, now_s)
            metrics.RESTARTS.labels(name).inc()
            logger.error(  # noqa: TRY400  # the fork server has logged the traceback
                "worker %s could not be started: %r; retrying in %g s", name, error, slot.pause_s
            )
            return
        slot.started_at_s = now_s
        process = slot.process
        logger.info("worker %s started: pid %d, owner %s", name, process.pid, process.owner)

    def _check(self, name: str, slot: WorkerSlot, process: ChildProcess, now_s: float) -> None:
        status = process.status()
        if status is None:
            return
        slot.process = None
        process.close()
        if status != INVALID:  # refused at the start: it has held no message
            self._on_exit(process.owner, now_s)
        reason = describe_exit(status)
        if self.is_stopping:
            logger.info("worker %s exited (%s)", name, reason)
        elif status == INVALID:
            logger.error("worker %s exited (%s); stopping the others", name, reason)
            self.status = status
            self.stop(now_s)
        else:
            self._schedule(slot, status, now_s - slot.started_at_s, now_s)
            metrics.RESTARTS.labels(name).inc()
            logger.error("worker %s exited (%s); restarting in %g s", name, reason, slot.pause_s)

    def _schedule(self, slot: WorkerSlot, status: int, uptime_s: float, now_s: float) -> None:
        slot.pause_s = restart_pause_s(status, uptime_s, slot.pause_s)
        slot.start_at_s = now_s + slot.pause_s


def restart_pause_s(status: int, uptime_s: float, last_pause_s: float) -> float:
    """Return the pause before the next start, after an exit with `status`, in seconds."""
    first_s = _MIN_PAUSE_S.get(status, MIN_PAUSE_S)
    if uptime_s >= RESET_AFTER_S:
        return first_s
    return min(MAX_PAUSE_S, max(first_s, 2 * last_pause_s))


def describe_exit(status: int) -> str:
    """Return an exit status in words; a negative one is minus the number of a signal."""
    if status >= 0:
        return f"status {status}" + (f", {_REASONS[status]}" if status in _REASONS else "")
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name here
        return f"killed by signal {-status}"
