"""The span of a submission, where the application around the client traces with OpenTelemetry.

The application's tracer provider is used; without one this costs a look into a dict.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from api_contracts.names import queue_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from api_contracts.request import GenerationRequest

#: Most links of the span.
MAX_LINKS = 100


@contextmanager
def submit_span(
    requests: Sequence[GenerationRequest], ids: Sequence[str]
) -> Iterator[list[GenerationRequest]]:
    """Trace one call of `submit_many`; yields the requests, each with a `traceparent`.

    Requests that have one keep it, and the span links it. The span's parent is the span in which
    the call is made.
    """
    # Whoever has set up a tracer provider has imported this; nothing is imported for others.
    if "opentelemetry.trace" not in sys.modules:
        yield list(requests)
        return
    from opentelemetry import trace  # noqa: PLC0415  # see above
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415  # see above

    propagator = tracecontext.TraceContextTextMapPropagator()
    given = {request.traceparent for request in requests if request.traceparent}
    contexts = (propagator.extract({"traceparent": each}) for each in sorted(given)[:MAX_LINKS])
    queues = sorted({queue_name(request.model) for request in requests})
    attributes: dict[str, str | int] = {
        "messaging.system": "celery",
        "messaging.operation.name": "submit",
        "messaging.operation.type": "send",
    }
    if len(queues) == 1:
        attributes["messaging.destination.name"] = queues[0]
    if len(ids) == 1:
        attributes["messaging.message.id"] = ids[0]
    else:
        attributes["messaging.batch.message_count"] = len(ids)
    with trace.get_tracer("api_contracts").start_as_current_span(
        "submit", kind=trace.SpanKind.PRODUCER, attributes=attributes,
        links=[trace.Link(trace.get_current_span(each).get_span_context()) for each in contexts],
        record_exception=False, set_status_on_exception=False,  # messages may repeat a prompt
    ) as span:  # fmt: skip
        carrier: dict[str, str] = {}
        propagator.inject(carrier)  # nothing where there is neither a provider nor a parent
        try:
            yield [
                request.model_copy(update=carrier) if request.traceparent is None else request
                for request in requests
            ]
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR)
            raise
