"""What a scrape of Prometheus sees of this machine's workers."""

from __future__ import annotations

import logging

from prometheus_client import Counter, Gauge, Histogram

logger = logging.getLogger(__name__)

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
    "When the process that is furthest behind renewed its leases.",
    multiprocess_mode="livemin",
)
TASK_S = Histogram(
    "sag_task_seconds",
    "From submission to success.",
    buckets=(0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600),
)
RECOVERED = Counter(
    "sag_messages_recovered", "Messages put back or sent again, by why.", ["reason"]
)


def reject(reason: str, detail: str) -> None:
    """Count a message that became no task, and say why in the log."""
    REJECTED.labels(reason).inc()
    logger.warning("rejected a message (%s): %s", reason, detail)
