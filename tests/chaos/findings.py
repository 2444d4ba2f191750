"""The outcome of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.chaos.evidence import Evidence
    from tests.chaos.fault_injector import AppliedFault
    from tests.chaos.fault_schedule import FaultKind
    from tests.chaos.invariants import Violation
    from tests.chaos.plan import Plan
    from tests.chaos.recovery import Recovery
    from tests.chaos.submissions import Submission

#: Prefix of the ids of the tasks that run before the faults.
REFERENCE = "reference-"


@dataclass(frozen=True)
class Findings:
    """The outcome of a run."""

    plan: Plan
    duration_s: float
    evidence: Evidence
    violations: tuple[Violation, ...]
    applied: tuple[AppliedFault, ...]
    #: Faults for which no machine could be hit in time.
    skipped: int
    recoveries: Mapping[FaultKind, Recovery]
    #: Supervisors that ended without a fault.
    unexpected_ends: int
    #: Machines that did not end after SIGTERM.
    stuck: tuple[int, ...]
    tracebacks: Mapping[str, int]
    #: Whether `plan.off` was turned off in some process.
    switched: bool

    @property
    def tasks(self) -> dict[str, Submission]:
        """The submissions without those of the reference."""
        return {
            task_id: submission
            for task_id, submission in self.evidence.submissions.items()
            if not task_id.startswith(REFERENCE)
        }

    def breaches(self, *laws: Callable[..., Any]) -> set[str]:
        """Tasks that break any of these laws."""
        names = {law.__name__ for law in laws}
        return {each.what for each in self.violations if each.law in names}
