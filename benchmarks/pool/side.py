"""A process with many simulated workers, whose threads are gevent's greenlets.

Imports nothing that uses threads or sockets before gevent has replaced them.
"""

from __future__ import annotations

import importlib.metadata
import random
import time
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis

    from benchmarks.pool.worker import Log, SimulatedWorker

#: Keys: how many processes have started their workers, and until when they go on, by the monotonic
#: clock.
STARTED, UNTIL = "benchmark:started", "benchmark:until"
#: Longest pause between the start of two workers, in seconds.
START_S = 0.02
#: How long a greenlet sleeps to find out how late this process is, in seconds.
NAP_S = 0.01


class WorkersSide:
    """The workers of one process. They live while a call to it runs."""

    def __init__(self, workers: list[SimulatedWorker], log: Log, redis: Redis) -> None:
        self._workers, self._log, self._redis = workers, log, redis

    def run(self) -> tuple[Log, list[float], float]:
        """Start all workers, count this process in `STARTED`, go on until the time in `UNTIL`.

        Returns the log; and of the time after the start, by how much naps of `NAP_S` were too long,
        in seconds, and this process's share of a core.
        """
        for worker in self._workers:
            worker.start()
            time.sleep(random.uniform(0, START_S))  # noqa: S311  # no secret
        self._redis.incr(STARTED)
        late_s: list[float] = []
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        until_s = None
        while until_s is None or time.monotonic() < until_s:
            if until_s is None:
                until_s = self._until_s()
            napped_s = time.monotonic()
            time.sleep(NAP_S)
            late_s.append(time.monotonic() - napped_s - NAP_S)
        cpu_s = time.process_time() - began_cpu_s
        return self._log, late_s, cpu_s / (time.monotonic() - began_s)

    def _until_s(self) -> float | None:
        found: Any = self._redis.get(UNTIL)
        return float(found) if found else None


def start(plan: dict[str, Any]) -> WorkersSide:
    """Replace threads and sockets, then build the workers; `plan` has the fields of a `Plan`."""
    from gevent import monkey  # noqa: PLC0415  # see above

    monkey.patch_all()
    # redis-py asks for its version with each connection: 2 ms.
    importlib.metadata.version = cache(importlib.metadata.version)

    from api_contracts.redis_io.connection import connect  # noqa: PLC0415  # see above
    from benchmarks.pool.plan import Plan  # noqa: PLC0415  # see above
    from benchmarks.pool.worker import Log, SimulatedWorker, settings_app  # noqa: PLC0415  # as above

    given, log = Plan(**plan), Log()
    app = settings_app(given.url)
    numbers = range(given.first, given.first + given.workers)
    workers = [SimulatedWorker(given, each, app, log) for each in numbers]
    return WorkersSide(workers, log, connect(given.url))
