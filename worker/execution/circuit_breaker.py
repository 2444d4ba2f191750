"""When tasks fail in a row for faults of this process, it stops taking them.

A process whose device or model is broken fails every task at once, and would empty the queue.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from api_contracts.errors import ErrorCode
from worker.execution.outcome import Failed, Requeued, Succeeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.execution.outcome import Outcome

#: Tasks that fail one after the other, none succeeding between them, before it is the process.
LIMIT = 3
#: Codes that say that the process may be at fault, and another might do better.
OURS = frozenset({ErrorCode.INTERNAL, ErrorCode.MODEL_LOAD_FAILED})


class CircuitBreaker:
    """Counts the tasks that failed in a row. Thread-safe."""

    def __init__(self, on_trip: Callable[[str], None]) -> None:
        """`on_trip` is called once, with the reason."""
        self._on_trip = on_trip
        self._lock = threading.Lock()
        self._failed: dict[str, str] = {}
        self.reason: str | None = None

    def note(self, task_id: str, outcome: Outcome, fault: str | None) -> None:
        """Hear how a task ended; `fault` says what of ours went wrong, if anything did."""
        with self._lock:
            if isinstance(outcome, Succeeded):
                self._failed.clear()
            if fault is None or not isinstance(outcome, (Failed, Requeued)):
                return
            self._failed[task_id] = fault
            if len(self._failed) < LIMIT or self.reason is not None:
                return
            self.reason = f"{LIMIT} tasks in a row failed here, the last one: {fault}"
        self._on_trip(self.reason)
