"""The span of a submission, where the application around the client traces with OpenTelemetry.

The application's tracer provider is used; without one no span is made and no request copied.
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
    # Whoever has set up a tracer provider has imported this; nothing is imported for others. That
    # it is imported does not say that one is set up: redis-py imports it where it is installed.
    if "opentelemetry.trace" not in sys.modules:
        yield list(requests)
        return
    from opentelemetry import trace  # noqa: PLC0415  # see above

    if (
        isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        and not trace.get_current_span().get_span_context().is_valid
    ):
        yield list(requests)
        return
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415  # see above

    propagator = tracecontext.TraceContextTextMapPropagator()
    given = {request.traceparent for request in requests if request.traceparent}
    parents = (propagator.extract({"traceparent": each}) for each in sorted(given)[:MAX_LINKS])
    contexts = [trace.get_current_span(each).get_span_context() for each in parents]
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
        links=[trace.Link(each) for each in contexts if each.is_valid],
        record_exception=False, set_status_on_exception=False,  # messages may repeat a prompt
    ) as span:  # fmt: skip
        carrier: dict[str, str] = {}
        propagator.inject(carrier)  # nothing where there is neither a provider nor a parent
        own = {"traceparent": carrier["traceparent"]} if carrier else {}  # not `tracestate`
        try:
            yield [
                request.model_copy(update=own) if own and request.traceparent is None else request
                for request in requests
            ]
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR)
            raise
