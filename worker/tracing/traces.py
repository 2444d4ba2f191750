"""The switch between the rest of the worker and its spans. Imports OpenTelemetry only when on."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from worker.tracing import switch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.errors import PushError
    from worker.record.claim import Claim
    from worker.record.push_queue import Due
    from worker.tracing.spans import AttemptSpan, Spans, Value

logger = logging.getLogger(__name__)

#: How long `close` waits for the last spans to be exported, in seconds.
CLOSE_TIMEOUT_S = 2.0


class Traces:
    """The spans of one worker process. Off until `start`; then each call costs one comparison."""

    def __init__(self, owner: str = "") -> None:
        """`owner` names this process in its spans."""
        self._owner = owner
        self._spans: Spans | None = None

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
            logger.warning("no traces: %s", error)
        else:
            logger.info("traces are exported")

    def attempt(
        self, claim: Claim, traceparent: str, queue: str, attributes: Mapping[str, Value]
    ) -> AttemptSpan | None:
        """Begin the span of an attempt; None when off, or not sampled.

        `traceparent` is the caller's; '' begins a trace of the task's own.
        """
        if self._spans is None:
            return None
        return self._spans.attempt(claim, traceparent, queue, attributes)

    def push(self, due: Due, receiver: str, began_s: float, error: PushError | None) -> None:
        """Write the span of a try that has ended; `began_s` is of `time.perf_counter`.

        `receiver` is the queue or the host.
        """
        if self._spans is not None:
            self._spans.push(due, receiver, began_s, error)

    def close(self) -> None:
        """Export the rest, in at most `CLOSE_TIMEOUT_S`."""
        if self._spans is None:
            return
        spans, self._spans = self._spans, None
        thread = threading.Thread(target=spans.close, name="traces-close", daemon=True)
        thread.start()
        thread.join(CLOSE_TIMEOUT_S)
        if thread.is_alive():
            logger.warning("the last spans were not exported within %g s", CLOSE_TIMEOUT_S)
