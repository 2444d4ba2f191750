"""The worker processes of one supervisor: who lives, who is started again and when, who must go.

Pure bookkeeping: time is passed in, starting a process is somebody else's.
"""

from __future__ import annotations

import logging
import math
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from worker import metrics
from worker.exit_codes import INVALID
from worker.supervisor import restarts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

logger = logging.getLogger(__name__)


class Process(Protocol):
    """What is known of a process, as `worker.supervisor.child_process.ChildProcess` has it."""

    owner: str
    pid: int

    def status(self) -> int | None:
        """None while it lives."""

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""

    def close(self) -> None:
        """Let go of it."""


@dataclass
class WorkerSlot:
    """A place that is to have a living process. Times are on the caller's clock, in seconds."""

    environment: Mapping[str, str]
    process: Process | None = None
    started_s: float = 0.0
    #: The pause before the last start, and when the next may be.
    pause_s: float = 0.0
    due_s: float = -math.inf


class ProcessManager:
    """One process at each post, as long as nobody has asked them to leave."""

    def __init__(
        self,
        posts: Mapping[str, Mapping[str, str]],
        start: Callable[[str, Mapping[str, str]], Process],
        died: Callable[[str, float], None],
        grace_s: float,
    ) -> None:
        """`posts` are environments by name; `died` is told the owner of each that ended, and when.

        `start` may raise `OSError` or `EOFError`; it is called again. Whoever lives `grace_s` after
        the first `leave` is killed.
        """
        self._posts = {name: WorkerSlot(environment) for name, environment in posts.items()}
        self._start, self._died, self._grace_s = start, died, grace_s
        self._kill_at_s: float | None = None
        #: 0, or why everybody had to leave.
        self.status = 0

    @property
    def is_leaving(self) -> bool:
        """Whether they have been asked to leave."""
        return self._kill_at_s is not None

    @property
    def is_gone(self) -> bool:
        """Whether all have left, and nobody comes."""
        return self.is_leaving and not any(self._living())

    def step(self, now_s: float) -> None:
        """Look at everybody once, and do what is due."""
        for name, post in self._posts.items():
            if post.process is not None:
                self._look(name, post, post.process, now_s)
            if post.process is None and not self.is_leaving and now_s >= post.due_s:
                self._fill(name, post, now_s)
        if self._kill_at_s is not None and now_s >= self._kill_at_s:
            self._kill_at_s = math.inf
            for process in self._living():
                logger.error("process %d has not ended in time and is killed", process.pid)
                process.send_signal(signal.SIGKILL)

    def leave(self, now_s: float) -> None:
        """Ask everybody to end, each time anew; nobody is started any more."""
        if self._kill_at_s is None:
            self._kill_at_s = now_s + self._grace_s
        for process in self._living():
            process.send_signal(signal.SIGTERM)

    def _living(self) -> Iterator[Process]:
        return (post.process for post in self._posts.values() if post.process is not None)

    def _fill(self, name: str, post: WorkerSlot, now_s: float) -> None:
        try:
            post.process = self._start(name, post.environment)
        except (OSError, EOFError) as error:
            post.pause_s = restarts.pause_s(1, 0.0, post.pause_s)
            post.due_s = now_s + post.pause_s
            logger.error("worker %s could not be started: %r", name, error)  # noqa: TRY400  # the server has told why
            return
        post.started_s = now_s
        logger.info("worker %s is process %d (%s)", name, post.process.pid, post.process.owner)

    def _look(self, name: str, post: WorkerSlot, process: Process, now_s: float) -> None:
        status = process.status()
        if status is None:
            return
        post.process = None
        process.close()
        self._died(process.owner, now_s)
        why = restarts.reason(status)
        if self.is_leaving:
            logger.info("worker %s ended (%s)", name, why)
        elif status == INVALID:
            logger.error("worker %s ended (%s); ending the others", name, why)
            self.status = status
            self.leave(now_s)
        else:
            post.pause_s = restarts.pause_s(status, now_s - post.started_s, post.pause_s)
            post.due_s = now_s + post.pause_s
            metrics.RESTARTS.labels(name).inc()
            logger.error("worker %s ended (%s); starts again in %g s", name, why, post.pause_s)
