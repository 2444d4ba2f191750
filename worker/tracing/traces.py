"""The switch between the rest of the worker and its spans. Loads the exporter only when on."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.tracing import switch
from worker.tracing.report_limit import ReportLimit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.errors import PushError
    from worker.record.claim import Claim
    from worker.record.push_queue import Due
    from worker.tracing.spans import AttemptSpan, Spans, Value

logger = logging.getLogger(__name__)

#: How long `close` waits for the last spans to be exported, in seconds.
CLOSE_TIMEOUT_S = 2.0


class Traces:
    """The spans of one worker process. Off until `start`; `close` turns them off again.

    Thread-safe, and no error of a span ends a task.
    """

    def __init__(self, owner: str = "") -> None:
        """`owner` names this process in its spans."""
        self._owner = owner
        self._spans: Spans | None = None
        self._limit = ReportLimit()

    @property
    def is_on(self) -> bool:
        """Whether spans are written."""
        return self._spans is not None

    def start(self) -> None:
        """Export spans if the environment asks for it; to be called after the last fork.

        What it asks for and can't have is logged: another program's variable must not stop a
        worker.
        """
        try:
            if not switch.is_on(os.environ):
                return
            from worker.tracing.spans import Spans  # noqa: PLC0415  # the extra `otel`

            self._spans = Spans(self._owner)
        except ImportError as error:
            logger.warning("no traces: %s; install sag-worker[otel]", error)
        except Exception as error:  # noqa: BLE001  # whatever the SDK raises for its variables
            logger.warning("no traces: %s", switch.named(error, os.environ))
        else:
            logger.info("traces are exported")

    def attempt(
        self, claim: Claim, traceparent: str, queue: str, attributes: Mapping[str, Value]
    ) -> AttemptSpan | None:
        """Begin the span of an attempt; None when off, or not sampled.

        `traceparent` is the caller's; '' begins a trace of the task's own.
        """
        spans = self._spans  # `close`, on another thread, may set None meanwhile
        if spans is not None:
            with self.guard():
                return spans.attempt(claim, traceparent, queue, attributes)
        return None

    def push(
        self, due: Due, receiver: str, times_s: tuple[float, float], error: PushError | None
    ) -> None:
        """Write the span of a try: when it began and ended by `time.perf_counter`, its error.

        `receiver` is the queue or the host, with its port if there is one.
        """
        spans = self._spans
        if spans is not None:
            with self.guard():
                spans.push(due, receiver, times_s, error)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Log what is raised while a span is written, at most once in `REPORT_INTERVAL_S`."""
        try:
            yield
        except Exception as error:
            # Samplers and exporters may be anyone's and raise anything. A task, or a push that was
            # delivered, must not be done again for want of a span.
            if self._limit.admits(type(error).__name__):
                left_out = self._limit.left_out()
                logger.warning("traces: a span is missing%s", left_out, exc_info=True)

    def close(self) -> None:
        """Export the rest, in at most `CLOSE_TIMEOUT_S`."""
        spans, self._spans = self._spans, None
        if spans is None:
            return
        thread = threading.Thread(target=spans.close, name="traces-close", daemon=True)
        thread.start()
        thread.join(CLOSE_TIMEOUT_S)
        if thread.is_alive():
            logger.warning("the last spans were not exported within %g s", CLOSE_TIMEOUT_S)
