"""Prometheus metrics of the workers of one supervisor.

Its processes write to files in a common folder, which the supervisor reads for each scrape. The
folder must be in the environment, as `FOLDER`, before this module is imported; without it the
metrics are those of one process.
"""

from __future__ import annotations

import logging
import os
import threading
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    start_http_server,
)
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from api_contracts.errors import ErrorCode
from api_contracts.pushes import PushKind, PushState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from api_contracts.result import Timings

logger = logging.getLogger(__name__)

#: The variable of prometheus_client that names the folder.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"

DELIVERIES = Counter("sag_deliveries", "Deliveries, by outcome.", ["outcome"])
FAILURES = Counter("sag_task_failures", "Tasks that failed, by error code.", ["code"])
REJECTED = Counter("sag_messages_rejected", "Messages that were rejected.", ["reason"])
RUNNING = Gauge(
    "sag_tasks_running", "Tasks that are claimed and have not ended.", multiprocess_mode="livesum"
)
WELL = Gauge("sag_workers_well", "Processes that accept tasks.", multiprocess_mode="livesum")
RENEWED = Gauge(
    "sag_lease_renewed_timestamp_seconds",
    "When a process last renewed its leases.",
    ["worker"],
    multiprocess_mode="livemax",
)
#: Buckets of waits and of whole tasks, in seconds.
_WAIT_BUCKETS = (
    0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600,
)  # fmt: skip
TASK_S = Histogram(
    "sag_task_seconds",
    "Time from submission to success.",
    buckets=_WAIT_BUCKETS,
)
QUEUE_WAIT_S = Histogram(
    "sag_task_queue_wait_seconds",
    "Time from submission to the first claim, of tasks that run then.",
    buckets=_WAIT_BUCKETS,
)
FIRST_STEP_S = Histogram(
    "sag_task_first_step_seconds",
    "Time from submission to the end of the first step, in the first attempt.",
    buckets=_WAIT_BUCKETS,
)
STAGE_S = Histogram(
    "sag_task_stage_seconds",
    "Duration of each stage of a task that succeeded, as its result has it.",
    ["stage"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
#: The stages: fields of a result's `timings`, without their unit.
STAGES = ("queued", "load", "encode", "denoise", "decode", "upload")
STEP_S = Histogram(
    "sag_unet_step_seconds",
    "Time of a UNet call and of the steps after it, of all images that share it.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
ROWS = Histogram(
    "sag_unet_call_rows",
    "Rows of a UNet call.",
    buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128),
)
RECOVERED = Counter(
    "sag_messages_recovered", "Messages put back or sent again, by reason.", ["reason"]
)
DECODED_AGAIN = Counter(
    "sag_images_decoded_again", "Images decoded again in float32, as half precision overflowed."
)
S3_FAILURES = Counter("sag_s3_failures", "Calls of S3 that failed, retries counted.")
S3_RETRIES = Counter("sag_s3_retries", "Repeated tries of calls of S3.")
REDIS_RETRIES = Counter(
    "sag_redis_retries", "Repeated tries of calls of Redis that must not be lost."
)
DOWNLOAD_S = Gauge(
    "sag_model_download_seconds",
    "How long the unfinished download of a model has taken; 0 without one.",
    multiprocess_mode="livemax",
)
PUSHES = Counter("sag_pushes", "Attempts to push results, by kind and state.", ["kind", "state"])
RESTARTS = Counter(
    "sag_worker_restarts", "Restarts of worker processes, and starts that failed.", ["worker"]
)
DEAD_LETTERS = Counter("sag_dead_letters", "Tasks that became dead letters.")


# All series are there from the start: Prometheus sees no increase in one that begins at 1.
for _metric, _values in (
    (DELIVERIES, ("succeeded", "failed", "cancelled", "expired", "requeued", "dropped")),
    (FAILURES, list(ErrorCode)),
    (REJECTED, ("no_message", "too_large", "no_task", "odd_record")),
    (RECOVERED, ("lease", "death", "lost")),
    (STAGE_S, STAGES),
):
    for _value in _values:
        _metric.labels(_value)
for _kind, _state in product(PushKind, PushState):
    PUSHES.labels(_kind, _state)
PUSHES.labels("unknown", "lost")


def observe_success(timings: Timings) -> None:
    """Count a task that succeeded, by its whole time and that of each stage."""
    TASK_S.observe(timings.total_s)
    for stage in STAGES:
        STAGE_S.labels(stage).observe(getattr(timings, f"{stage}_s"))


#: Held while files of the folder are read or merged: a scrape counts each of them once.
_files_lock = threading.Lock()


class _Files(MultiProcessCollector):
    """The files of all processes, those that exited included."""

    def collect(self) -> Iterable[Metric]:
        """Read the files."""
        with _files_lock:
            return list(super().collect())


def serve(port: int) -> None:
    """Serve the metrics from a daemon thread; raises `OSError` when the port is taken."""
    registry = REGISTRY
    if FOLDER in os.environ:
        registry = CollectorRegistry()
        _Files(registry)
    start_http_server(port, registry=registry)
    logger.info("serving metrics on port %d", port)


def remove_process(pid: int) -> None:
    """Remove the gauges of an exited process, and add its counts to those of earlier ones.

    So that the number of files, which each scrape reads, does not grow with the exits.
    """
    if FOLDER not in os.environ:
        return
    with _files_lock:
        mark_process_dead(pid)
        for kind in ("counter", "histogram"):
            own = Path(os.environ[FOLDER], f"{kind}_{pid}.db")
            if own.exists():
                _add_to(own.with_name(f"{kind}_exited.db"), own)
                own.unlink()


def _add_to(sums: Path, own: Path) -> None:
    """Add each value in a file of one process to that in another file."""
    total = MmapedDict(str(sums))
    for key, value, at, _ in MmapedDict.read_all_values_from_file(str(own)):
        total.write_value(key, total.read_value(key)[0] + value, at)
    total.close()


def reject(reason: str, detail: str) -> None:
    """Count and log a rejected message."""
    REJECTED.labels(reason).inc()
    logger.warning("rejected a message (%s): %s", reason, detail)
