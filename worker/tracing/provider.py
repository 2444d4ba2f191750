"""OpenTelemetry's SDK, set up for a worker: ids that are derived, and logs that are bounded."""

from __future__ import annotations

import logging
import re
import threading
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from worker.logs import without_logins
from worker.tracing.report_limit import ReportLimit

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

#: `service.name`, unless the environment names another.
SERVICE = "sag-worker"
#: Reports that name different ones are of different kinds; all else in a report may be a number.
VARIABLE = re.compile(r"OTEL_\w+")
#: Logs a header that it can't parse as it is, though headers hold tokens.
HEADERS_LOGGER = "opentelemetry.util.re"
#: What is logged instead.
HEADERS_REPORT = (
    "OTEL_EXPORTER_OTLP_HEADERS or OTEL_EXPORTER_OTLP_TRACES_HEADERS has a header that is not "
    "name=value and is not sent; headers are separated by commas, values URL-encoded"
)


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
    """Logs each kind of what the SDK reports at most once in `REPORT_INTERVAL_S`, without secrets.

    While a collector is away its exporter reports several lines for each batch.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._limit = ReportLimit()

    def emit(self, record: logging.LogRecord) -> None:
        """Log the report, or count it."""
        try:
            text = _text(record)
            if self._limit.admits((record.name, record.msg, *VARIABLE.findall(text))):
                logger.warning("traces: %s%s", text, self._limit.left_out())
        except Exception:  # noqa: BLE001  # as of any handler: the caller goes on
            self.handleError(record)


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


def _text(record: logging.LogRecord) -> str:
    """What a record says, with the exception that it is about; one line, no traceback."""
    if record.name == HEADERS_LOGGER:
        return HEADERS_REPORT
    text = record.getMessage()
    if record.exc_info and (error := record.exc_info[1]) is not None:
        text += f": {type(error).__name__}: {error}"
    return without_logins(text)


def _limit_reports() -> None:
    reports = logging.getLogger("opentelemetry")
    if not any(isinstance(each, ReportDigest) for each in reports.handlers):
        reports.addHandler(ReportDigest())
        reports.propagate = False
