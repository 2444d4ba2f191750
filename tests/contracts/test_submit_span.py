"""The span of a submission, in an application that traces with OpenTelemetry."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api_contracts import (
    AsyncGenerationClient,
    GenerationClient,
    GenerationRequest,
    ServiceUnavailable,
)
from api_contracts.client.tracing import submit_span
from api_contracts.names import Keys
from tests.contracts.test_submit import messages, request_in
from tests.record.owners import record
from worker.embedded import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan
    from redis import Redis

GIVEN = f"00-{'a' * 32}-{'b' * 16}-01"
PROMPT = "a prompt that must not leave the request"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of the application around the client, whose tracer provider is this one."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def by_async(url: str, namespace: str, requests: list[dict[str, Any]], ids: list[str]) -> None:
    async def submit() -> None:
        async with AsyncGenerationClient(url, namespace) as client:
            await client.submit_many(requests, ids)

    asyncio.run(submit())


def by_sync(url: str, namespace: str, requests: list[dict[str, Any]], ids: list[str]) -> None:
    with GenerationClient(url, namespace) as client:
        client.submit_many(requests, ids)


both = pytest.mark.parametrize("submit", [by_sync, by_async])


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


@both
def test_the_request_carries_the_span_of_its_submission(
    submit: Callable[..., None],
    exported: InMemorySpanExporter,
    redis: Redis,
    redis_url: str,
    namespace: str,
) -> None:
    """Message and record have the submission's span, a child of the application's, as parent."""
    request = {"prompt": PROMPT, "model": namespace}
    with trace.get_tracer("shop").start_as_current_span("checkout") as own:
        submit(redis_url, namespace, [request], ["task"])
    span = exported.get_finished_spans()[0]
    assert span.name == "submit"
    assert span.parent == own.get_span_context()
    assert span.kind is trace.SpanKind.PRODUCER
    (message,) = messages(redis, namespace)
    assert request_in(message) == request | {"traceparent": traceparent(span)}
    stored = json.loads(record(redis, Keys(namespace), "task")["request"])
    assert stored == request_in(message)
    assert span.attributes == {
        "messaging.system": "celery",
        "messaging.operation.name": "submit",
        "messaging.operation.type": "send",
        "messaging.destination.name": f"generate.{namespace}",
        "messaging.message.id": "task",
    }
    assert PROMPT not in span.to_json()


@both
def test_many_requests_have_one_span(
    submit: Callable[..., None],
    exported: InMemorySpanExporter,
    redis: Redis,
    redis_url: str,
    namespace: str,
) -> None:
    """One call is one span; a request with a `traceparent` of its own keeps it, and is linked."""
    request = {"prompt": "x", "model": namespace}
    submit(redis_url, namespace, [request, request | {"traceparent": GIVEN}], ["one", "two"])
    (span,) = exported.get_finished_spans()
    sent = {each["headers"]["id"]: request_in(each) for each in messages(redis, namespace)}
    assert sent["one"]["traceparent"] == traceparent(span)
    assert sent["two"]["traceparent"] == GIVEN
    assert [f"{each.context.span_id:x}" for each in span.links] == ["b" * 16]
    assert span.attributes is not None
    assert span.attributes["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in span.attributes


def test_a_task_that_is_submitted_again_keeps_its_first_span(
    exported: InMemorySpanExporter, redis: Redis, redis_url: str, namespace: str
) -> None:
    """The first request under an id counts, and so does its span."""
    for _ in range(2):
        by_sync(redis_url, namespace, [{"prompt": "x", "model": namespace}], ["again"])
    first, _ = exported.get_finished_spans()
    sent = [request_in(each)["traceparent"] for each in messages(redis, namespace)]
    assert sent == [traceparent(first)] * 2


@both
def test_a_failed_submission_is_a_failed_span(
    submit: Callable[..., None], exported: InMemorySpanExporter, namespace: str, no_backoff: None
) -> None:
    """A failed submission's span has the error's type, and no text that may repeat the caller's."""
    request = {"prompt": PROMPT, "model": namespace}
    with pytest.raises(ServiceUnavailable):
        submit(f"redis://127.0.0.1:{free_port()}/0", namespace, [request], ["task"])
    (span,) = exported.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ServiceUnavailable"
    assert (span.events, span.status.description) == ((), None)


def test_an_unsampled_submission_says_so(
    monkeypatch: pytest.MonkeyPatch, redis: Redis, redis_url: str, namespace: str
) -> None:
    """A request has the sampler's decision, so that the worker samples the same tasks."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider(sampler=ALWAYS_OFF))
    by_sync(redis_url, namespace, [{"prompt": "x", "model": namespace}], ["task"])
    (message,) = messages(redis, namespace)
    assert int(request_in(message)["traceparent"][-2:], 16) & 1 == 0


def carry_on(requests: list[GenerationRequest]) -> list[GenerationRequest]:
    with submit_span(requests, [f"{n}" for n in range(len(requests))]) as traced:
        return traced


@pytest.mark.parametrize("provider", [None, trace.NoOpTracerProvider()], ids=["none", "no-op"])
def test_without_a_provider_nothing_is_made(
    provider: trace.TracerProvider | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is copied, and no tracer is asked for, where OpenTelemetry is only imported."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    if provider is None:
        monkeypatch.delattr(trace, "get_tracer")
    request = GenerationRequest(prompt="x")
    assert carry_on([request])[0] is request


def test_a_parent_without_a_provider_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that only passes a caller's context on sends that."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    token = context.attach(TraceContextTextMapPropagator().extract({"traceparent": GIVEN}))
    try:
        (sent,) = carry_on([GenerationRequest(prompt="x")])
    finally:
        context.detach(token)
    assert sent.traceparent == GIVEN


def test_only_fields_of_the_contract_are_set(exported: InMemorySpanExporter) -> None:
    """The `tracestate` of the application's span is in no request."""
    carrier = {"traceparent": GIVEN, "tracestate": "vendor=value"}
    token = context.attach(TraceContextTextMapPropagator().extract(carrier))
    try:
        (sent,) = carry_on([GenerationRequest(prompt="x")])
    finally:
        context.detach(token)
    assert sent.traceparent == traceparent(exported.get_finished_spans()[0])
    assert "tracestate" not in vars(sent)
    assert sent == GenerationRequest.model_validate(sent.to_wire())


def test_only_valid_spans_are_linked(
    exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `traceparent` of zeros is no span, whether or not the application's SDK refuses it."""
    zeros, linked = f"00-{'0' * 32}-{'0' * 16}-01", []

    class Link(trace.Link):
        def __init__(self, context: trace.SpanContext) -> None:
            linked.append(context.is_valid)
            super().__init__(context)

    monkeypatch.setattr(trace, "Link", Link)
    with trace.get_tracer("shop").start_as_current_span("checkout"):
        carry_on([GenerationRequest(prompt="x", traceparent=each) for each in (GIVEN, zeros)])
    span = exported.get_finished_spans()[0]
    assert [f"{each.context.span_id:x}" for each in span.links] == ["b" * 16]
    assert linked == [True]


@both
def test_without_a_provider_the_request_is_sent_as_it_is(
    submit: Callable[..., None], redis: Redis, redis_url: str, namespace: str
) -> None:
    """An application that has set up no tracing sends no `traceparent`."""
    request = {"prompt": "x", "model": namespace}
    submit(redis_url, namespace, [request], ["task"])
    (message,) = messages(redis, namespace)
    assert request_in(message) == request
