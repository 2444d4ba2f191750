"""A process with many simulated workers, whose threads are gevent's greenlets.

Imports nothing that uses threads or sockets before gevent has replaced them.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.pool.worker import Log, SimulatedWorker

#: How long a greenlet sleeps to find out how late this process is, in seconds.
NAP_S = 0.01


class WorkersSide:
    """The workers of one process. They live while a call to it runs."""

    def __init__(self, workers: list[SimulatedWorker], log: Log) -> None:
        self._workers, self._log = workers, log

    def run(self, until_s: float, start_s: float) -> tuple[Log, list[float], float]:
        """Start all workers within `start_s` seconds, let them work until a monotonic time.

        Returns the log; and of the time after the start, by how much naps of `NAP_S` were too long,
        in seconds, and this process's share of a core.
        """
        for worker in self._workers:
            worker.start()
            time.sleep(start_s / len(self._workers) * random.uniform(0.5, 1.0))  # noqa: S311  # no secret
        late_s: list[float] = []
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        while (now_s := time.monotonic()) < until_s:
            time.sleep(NAP_S)
            late_s.append(time.monotonic() - now_s - NAP_S)
        cpu_s = time.process_time() - began_cpu_s
        return self._log, late_s, cpu_s / (time.monotonic() - began_s)


def start(plan: dict[str, Any]) -> WorkersSide:
    """Replace threads and sockets, then build the workers; `plan` has the fields of a `Plan`."""
    from gevent import monkey  # noqa: PLC0415  # see above

    monkey.patch_all()

    from benchmarks.pool.plan import Plan  # noqa: PLC0415  # see above
    from benchmarks.pool.worker import Log, SimulatedWorker, settings_app  # noqa: PLC0415  # as above

    given, log = Plan(**plan), Log()
    app = settings_app(given.url)
    numbers = range(given.first, given.first + given.workers)
    return WorkersSide([SimulatedWorker(given, each, app, log) for each in numbers], log)
