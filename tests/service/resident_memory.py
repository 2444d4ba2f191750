"""The resident memory of a worker while it runs many tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from tests.conftest import Service

#: Tasks that wait or run at a time.
OPEN = 24
#: Growth from the second quarter to the last that is no leak, in MiB: torch's allocator keeps what
#: the largest company of tasks needed, and that may come late.
SLACK_MIB = 64


def memory_mib(worker: Service) -> float:
    """Resident memory of the worker's processes; what they share counts for each."""
    supervisor = psutil.Process(worker.process.pid)
    processes = [supervisor, *supervisor.children(recursive=True)]
    return float(sum(each.memory_info().rss for each in processes) / 2**20)
