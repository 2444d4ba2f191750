"""What one number of workers cost: Redis's load, latencies and tasks, as cells of a row."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import quantiles
from typing import TYPE_CHECKING

from benchmarks.record import rounded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.pool.probes import Sent
    from benchmarks.pool.redis_load import Load
    from benchmarks.pool.worker import Log
    from benchmarks.record import Cell

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Measured:
    """What was measured with one number of workers."""

    workers: int
    load: Load
    sent: Sent
    logs: Sequence[Log]
    #: The longest command and its milliseconds.
    longest: tuple[str, float]
    #: How late the simulator's own threads ran, in seconds, and its processor time as a share.
    late_s: Sequence[float]
    simulator_cores: float

    @property
    def ended(self) -> int:
        """Tasks that succeeded between the two snapshots."""
        before, after = self.load.before.at_s, self.load.after.at_s
        return sum(before <= each < after for log in self.logs for each in log.ended_s)

    @property
    def pace(self) -> float:
        """Tasks a second, of all workers."""
        return self.ended / self.load.seconds

    @property
    def errors(self) -> list[str]:
        """All that the workers logged."""
        return [each for log in self.logs for each in log.errors]

    def claim_s(self, sent_s: Mapping[str, float]) -> list[float]:
        """From the moment at which messages were sent until they were claimed."""
        return _between(sent_s, [log.claimed_s for log in self.logs])

    def cancel_s(self) -> list[float]:
        """From the call to cancel a task that runs until its worker knows."""
        return _between(self.sent.cancel_s, [log.cancelled_s for log in self.logs])

    def load_cells(self) -> dict[str, Cell]:
        """Commands, Redis's processor, connections."""
        load, seconds = self.load, self.load.seconds
        return {
            "commands_a_second": rounded(load.calls / seconds),
            "redis_core_share": rounded(load.core_share),
            "connections": load.after.connections,
        }

    def latency_cells(self) -> dict[str, Cell]:
        """PING, the longest command, and how busy and late the simulator was."""
        return {
            **milliseconds("ping", self.sent.ping_s),
            "longest_command": self.longest[0],
            "longest_ms": rounded(self.longest[1]),
            "errors": len(self.errors),
            "simulator_cores": rounded(self.simulator_cores),
            "simulator_late_ms_p99": milliseconds("", self.late_s)["_ms_p99"],
        }


def milliseconds(name: str, seconds: Sequence[float]) -> dict[str, Cell]:
    """Percentiles in milliseconds; None of fewer than two values."""
    columns = [f"{name}_ms_p{each}" for each in PERCENTILES]
    if len(seconds) < 2:  # noqa: PLR2004  # as `quantiles` wants
        return dict.fromkeys(columns)
    found = quantiles(seconds, n=100, method="inclusive")
    return {
        column: rounded(1000 * found[each - 1])
        for column, each in zip(columns, PERCENTILES, strict=True)
    }


def _between(began_s: Mapping[str, float], ended_s: Sequence[Mapping[str, float]]) -> list[float]:
    every = {task_id: at_s for each in ended_s for task_id, at_s in each.items()}
    return [every[task_id] - at_s for task_id, at_s in began_s.items() if task_id in every]
