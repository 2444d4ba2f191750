"""What a scrape of Prometheus sees of this machine's workers.

The processes of one supervisor write into files of a common folder, which it reads to answer:
`FOLDER` is in the environment before any of them imports this, or there is one process alone.
"""

from __future__ import annotations

import logging
import os

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    start_http_server,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

logger = logging.getLogger(__name__)

#: prometheus_client's name for the variable.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"

DELIVERIES = Counter("sag_deliveries", "Deliveries by how they ended.", ["outcome"])
REJECTED = Counter("sag_messages_rejected", "Messages that became no task.", ["reason"])
RUNNING = Gauge(
    "sag_tasks_running", "Tasks that are claimed and not ended.", multiprocess_mode="livesum"
)
WELL = Gauge(
    "sag_workers_well", "Processes that would claim a task now.", multiprocess_mode="livesum"
)
RENEWED = Gauge(
    "sag_lease_renewed_timestamp_seconds",
    "When a process last renewed its leases.",
    ["worker"],
    multiprocess_mode="livemax",
)
TASK_S = Histogram(
    "sag_task_seconds",
    "From submission to success.",
    buckets=(0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600),
)
RECOVERED = Counter(
    "sag_messages_recovered", "Messages put back or sent again, by why.", ["reason"]
)
PUSHES = Counter("sag_pushes", "Tries to push ends, by what became of them.", ["kind", "state"])
RESTARTS = Counter("sag_worker_restarts", "Processes that died and were replaced.", ["worker"])


def serve(port: int) -> None:
    """Answer scrapes on a daemon thread; raises `OSError` when the port is taken."""
    registry = REGISTRY
    if FOLDER in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    start_http_server(port, registry=registry)
    logger.info("metrics are at port %d", port)


def forget(pid: int) -> None:
    """A process has ended: what it said of itself holds no more."""
    if FOLDER in os.environ:
        mark_process_dead(pid)


def reject(reason: str, detail: str) -> None:
    """Count a message that became no task, and say why in the log."""
    REJECTED.labels(reason).inc()
    logger.warning("rejected a message (%s): %s", reason, detail)
