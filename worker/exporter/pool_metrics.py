"""Prometheus metrics and JSON of a pool's status, read at most once a second."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric

    from worker.exporter.pool_status import PoolStatus

logger = logging.getLogger(__name__)

#: A status is served again within this time, in seconds, so that many requests cost Redis little.
REUSE_S = 1.0
#: Gauges of the fields of `PoolStatus` that are one number.
GAUGES = {
    "backlog": ("sag_pool_backlog_workers", "Tasks that wait, are held or run, in workers."),
    "held": ("sag_pool_tasks_held", "Messages that workers hold and have not claimed."),
    "running": ("sag_pool_tasks_running", "Tasks that workers have claimed."),
    "oldest_wait_s": (
        "sag_pool_oldest_wait_seconds",
        "How long the task has waited that has waited longest of those that are taken next.",
    ),
    "workers": ("sag_pool_workers", "Processes that have renewed leases and have not left."),
    "workers_well": ("sag_pool_workers_well", "Processes that take tasks."),
    "slots": ("sag_pool_slots", "Slots of the processes that take tasks."),
    "slots_free": ("sag_pool_slots_free", "Free slots of the processes that take tasks."),
    "dead_letters": ("sag_pool_dead_letters", "Dead letters; about 10,000 are kept."),
    "pushes_due": ("sag_pool_pushes_due", "Pushes whose next try is due."),
    "pushes_pending": ("sag_pool_pushes_pending", "Pushes that are not delivered or given up."),
    "open_tasks": ("sag_pool_open_tasks", "Tasks that are not closed."),
    "oldest_open_s": (
        "sag_pool_oldest_open_seconds",
        "Seconds since the open task that was written longest ago was written.",
    ),
}


class StatusUnknownError(Exception):
    """Redis can't be read, or the exporter has a bug; the message says which, for callers."""


class StatusSource:
    """The newest status. Thread-safe: one thread reads, the others wait for what it reads."""

    def __init__(
        self, read: Callable[[], PoolStatus], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`read` raises redis-py's errors while Redis is away; `clock` returns seconds."""
        self._read, self._clock, self._lock = read, clock, threading.Lock()
        self._until_s = float("-inf")
        self._found: PoolStatus | Exception | None = None
        #: How long the last reading took.
        self.took_s = 0.0

    def get(self) -> PoolStatus:
        """Return a status that is at most `REUSE_S` old; raises `StatusUnknownError`."""
        with self._lock:
            if self._clock() >= self._until_s or self._found is None:
                began_s = self._clock()
                try:
                    found: PoolStatus | Exception = self._read()
                except Exception as error:  # noqa: BLE001  # a bug must not look like an empty queue
                    found = error
                self._log_change(found)
                self._found, now_s = found, self._clock()
                self.took_s, self._until_s = now_s - began_s, now_s + REUSE_S
            found = self._found
        if isinstance(found, RedisError):
            raise StatusUnknownError(f"Redis can't be read: {found}") from found
        if isinstance(found, Exception):
            reason = f"a bug in the exporter ({type(found).__name__}); its log has the traceback"
            raise StatusUnknownError(reason) from found
        return found

    def _log_change(self, found: PoolStatus | Exception) -> None:
        """Log when readings begin to fail, also in another way, and when they succeed again."""
        before = type(self._found)
        failed_before = isinstance(self._found, Exception)
        if isinstance(found, RedisError):
            if not isinstance(self._found, RedisError):
                logger.warning("Redis can't be read: %s", found)
        elif isinstance(found, Exception):
            if type(found) is not before:
                logger.error("no status because of a bug in the exporter", exc_info=found)
        elif failed_before:
            logger.info("Redis is read again")


class PoolCollector(Collector):
    """The status as gauges; without one only `sag_exporter_redis_up`, 0, and the reading's time."""

    def __init__(self, source: StatusSource) -> None:
        self._source = source

    def describe(self) -> list[Metric]:
        """Nothing: what is served depends on Redis, which registering does not ask."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        status: PoolStatus | None = None
        with suppress(StatusUnknownError):  # the source has logged it
            status = self._source.get()
        help_up = "Whether the exporter could read Redis; 0 means that it has no other numbers."
        yield GaugeMetricFamily("sag_exporter_redis_up", help_up, float(status is not None))
        yield GaugeMetricFamily(
            "sag_exporter_read_seconds", "How long the last reading took.", self._source.took_s
        )
        if status is not None:
            yield from _gauges(status)


def _gauges(status: PoolStatus) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "sag_pool_tasks_waiting", "Messages that wait.", labels=["model", "priority"]
    )
    for model, by_priority in status.waiting_by.items():
        for priority, count in by_priority.items():
            waiting.add_metric([model, str(priority)], count)
    yield waiting
    for field, (name, text) in GAUGES.items():
        if (value := getattr(status, field)) is not None:
            yield GaugeMetricFamily(name, text, value)


def as_json(status: PoolStatus) -> dict[str, Any]:
    """The status as `/status` serves it: `docs/operations.md` describes each field."""
    found = dataclasses.asdict(status)
    for name in ("oldest_wait_s", "oldest_open_s"):
        found[name] = None if found[name] is None else round(found[name], 3)
    found["waiting_by"] = {
        model: {str(priority): count for priority, count in each.items() if count}
        for model, each in status.waiting_by.items()
    }
    return {"backlog": round(status.backlog, 4), "waiting": status.waiting} | found
