"""How often a log line about traces is repeated. Imports nothing of OpenTelemetry."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

#: Least time between two lines of one kind, in seconds.
REPORT_INTERVAL_S = 60.0
#: Most kinds within that time: a library may write a number into what is taken for the kind.
MAX_KINDS = 20


class ReportLimit:
    """Admits each kind of report once in `REPORT_INTERVAL_S`, and counts the rest.

    Threads that report at one moment may both be admitted.
    """

    def __init__(self) -> None:
        """All kinds are new."""
        self._admitted_s: dict[Hashable, float] = {}
        self._left_out = 0

    def admits(self, kind: Hashable) -> bool:
        """Whether a report is to be logged now."""
        now_s = time.monotonic()
        since_s = now_s - REPORT_INTERVAL_S
        recent = {each: at_s for each, at_s in self._admitted_s.items() if at_s > since_s}
        if kind in recent or len(recent) >= MAX_KINDS:
            self._left_out += 1
            return False
        self._admitted_s = recent | {kind: now_s}
        return True

    def left_out(self) -> str:
        """What a line that is logged says of those left out since the one before; '' of none."""
        number, self._left_out = self._left_out, 0
        return f" ({number} reports were left out)" if number else ""
