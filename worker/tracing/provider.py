"""OpenTelemetry's SDK, set up for a worker: ids that are derived, and logs that are bounded."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

#: `service.name`, unless the environment names another.
SERVICE = "sag-worker"
#: Least time between two lines about what the SDK reports, in seconds.
REPORT_INTERVAL_S = 60.0


class GivenIds(RandomIdGenerator):
    """Random ids, but for spans that are started inside of `given`. Thread-safe."""

    def __init__(self) -> None:
        """All are random."""
        self._local = threading.local()

    @contextmanager
    def given(self, trace_id: int, span_id: int | None) -> Iterator[None]:
        """Spans that this thread starts have this id, and this trace's if they have no parent."""
        self._local.trace_id, self._local.span_id = trace_id, span_id
        try:
            yield
        finally:
            self._local.trace_id, self._local.span_id = None, None

    def generate_trace_id(self) -> int:
        """As the SDK asks for."""
        return getattr(self._local, "trace_id", None) or super().generate_trace_id()

    def generate_span_id(self) -> int:
        """As the SDK asks for."""
        return getattr(self._local, "span_id", None) or super().generate_span_id()


class ReportDigest(logging.Handler):
    """Logs what the SDK reports at most once in `REPORT_INTERVAL_S`.

    While a collector is away its exporter reports several lines for each batch.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._logged_s, self._left_out = float("-inf"), 0

    def emit(self, record: logging.LogRecord) -> None:
        """Log the report, or count it."""
        if time.monotonic() - self._logged_s < REPORT_INTERVAL_S:
            self._left_out += 1
            return
        self._logged_s = time.monotonic()
        left_out = f" ({self._left_out} reports were left out)" if self._left_out else ""
        logger.warning("traces: %s%s", record.getMessage(), left_out)
        self._left_out = 0


def provider(owner: str, ids: GivenIds) -> TracerProvider:
    """A provider that exports on a thread of its own, as the SDK's variables say.

    It is not the process's global one: no instrumentation of other libraries is meant to join.
    """
    _limit_reports()
    resource = Resource({
        "service.name": SERVICE,
        "service.version": version("sag-worker"),
        "service.instance.id": owner,
    }).merge(OTELResourceDetector().detect())  # fmt: skip
    made = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


def _limit_reports() -> None:
    reports = logging.getLogger("opentelemetry")
    if not any(isinstance(each, ReportDigest) for each in reports.handlers):
        reports.addHandler(ReportDigest())
        reports.propagate = False
