"""The parameters of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.fault_schedule import FaultKind

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Plan:
    """The parameters of a run; they determine its submissions, and its faults and their order."""

    seed: int = 7
    #: None is without limit: then `seconds` must be given.
    tasks: int | None = 200
    #: Time to submit in, evenly when `tasks` are given, too; None: as fast as they end.
    seconds: float | None = None
    every_s: float = 2.0
    #: Faults go on until so many were applied, as long as tasks are open.
    least_faults: int = 0
    machines: int = 4
    kinds: frozenset[FaultKind] = frozenset(FaultKind)
    #: The mechanism, one of `patches.SWITCHES`, that is turned off in every worker.
    off: str | None = None
    #: Distinct requests.
    requests: int = 24
    #: Added to the steps of each: a long task still runs when its stopped owner continues.
    more_steps: int = 0
    #: Tasks that may be open at once.
    backlog: int = 40
    #: One task in `poison_in` kills its workers; None is none.
    poison_in: int | None = 500
    #: Shift of the last machine's clock, in seconds.
    clock_off_s: float = 180.0
    #: Time without any event after which the open tasks are taken for lost, in seconds.
    patience_s: float = 180.0
    #: Tasks that wait below those of the schedule for the whole run.
    others: int = 0
    #: Whether Redis has replicas and sentinels.
    sentinel: bool = False
    #: More of the workers' environment.
    settings: Mapping[str, str] = field(default_factory=dict)
