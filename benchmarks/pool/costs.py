"""What each call of a task costs Redis: many of one kind in a row, then the next kind.

Redis's own time for a command is wall time, which others on the machine lengthen; this measures the
processor time of its main thread, with reading, answering and the append-only file. `--before`
names another checkout, whose worker takes its turns.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.pool.calls import Calls

#: Packages that a checkout replaces.
REPLACED = ("worker", "api_contracts", "benchmarks.pool")


@dataclass(frozen=True)
class Cost:
    """Of all calls of one kind, for each task."""

    calls: float
    main_us: float
    network_bytes: float


class CostsSide:
    """One worker's calls, in a process of its own."""

    def __init__(self, calls: Calls, redis: Redis) -> None:
        self._calls, self._redis = calls, redis

    def measure(self) -> dict[str, Cost]:
        """Make all calls of some tasks; gives their cost by kind."""
        from benchmarks.pool.redis_load import Load, Snapshot  # noqa: PLC0415  # as `start` says

        self._redis.flushall()
        costs: dict[str, Cost] = {}
        kinds: Sequence[tuple[str, Callable[[], int]]] = self._calls.kinds()
        for name, make in kinds:
            before = Snapshot.of(self._redis)
            number = make()
            time.sleep(0.01)  # Redis writes its file when it has answered
            load = Load(before, Snapshot.of(self._redis))
            costs[name] = Cost(
                load.calls / number, 1e6 * load.main_s / number, load.network_bytes / number
            )
        return costs


def start(url: str, checkout: Path | None, plan: dict[str, Any]) -> CostsSide:
    """Import the worker of a checkout, this one's unless given, and make its calls ready."""
    if checkout is not None:
        for name in [each for each in sys.modules if each.startswith(REPLACED[:2])]:
            del sys.modules[name]
        sys.path.insert(0, str(checkout.resolve()))
    from benchmarks.pool.calls import Calls  # noqa: PLC0415  # after the above
    from benchmarks.pool.plan import Plan  # noqa: PLC0415  # as above

    return CostsSide(Calls(Plan(**plan | {"url": url})), Redis.from_url(url))
