"""Stops a process in which task after task fails because of the process itself.

A process with a broken device or model fails every task at once, and so would empty the queue.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from api_contracts.errors import ErrorCode
from worker.execution.outcome import TaskFailed, TaskRequeued, TaskSucceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.execution.outcome import Outcome

#: The breaker trips after so many different faults with no success between them.
MAX_FAILURES = 3
#: Error codes for which the process may be at fault: another process might succeed.
PROCESS_FAULTS = frozenset({ErrorCode.INTERNAL, ErrorCode.MODEL_LOAD_FAILED})


class CircuitBreaker:
    """Counts faults in a row. Thread-safe."""

    def __init__(self, on_trip: Callable[[str], None]) -> None:
        """`on_trip` is called once, with the reason."""
        self._on_trip = on_trip
        self._lock = threading.Lock()
        self._failed: dict[str, str] = {}
        self.reason: str | None = None

    def count(self, cause: str, outcome: Outcome, fault: str | None) -> None:
        """Count an outcome; `fault` is the error message when the process may be at fault.

        Tasks that failed of the same, as of one download, have one `cause`; else it is the task.
        """
        with self._lock:
            if isinstance(outcome, TaskSucceeded):
                self._failed.clear()
            if fault is None or not isinstance(outcome, (TaskFailed, TaskRequeued)):
                return
            self._failed[cause] = fault
            if len(self._failed) < MAX_FAILURES or self.reason is not None:
                return
            self.reason = f"{MAX_FAILURES} tasks in a row failed here, the last one: {fault}"
        self._on_trip(self.reason)
