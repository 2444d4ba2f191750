"""The spans of attempts and pushes, written by OpenTelemetry's SDK when they have ended.

A task's spans have one parent, the caller's span: `wait`, each `attempt` with its stages, `push`.
Ids of attempts are derived from the trace, the task and the fence, so that nothing is stored: an
attempt links those before it, and the one that takes over from a dead worker writes the span that
the dead worker could not. Without a caller's span the trace's id is derived from the task, too.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from api_contracts.pushes import PushKind
from worker.record.claim import ClaimAnswer
from worker.tracing.provider import GivenIds, provider
from worker.tracing.task_context import TaskContext, extract

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from opentelemetry.trace import Span

    from worker.errors import PushError
    from worker.job_control import Peer, Stage
    from worker.record.claim import Claim
    from worker.record.push_queue import Due

#: Of an attribute.
Value: TypeAlias = "str | int | float | bool"
#: Most links of a span; the SDK would drop the first ones beyond 128.
MAX_LINKS = 100
#: Of a port in a URL; a longer number may be no attribute.
MAX_PORT_DIGITS = 5
_SECOND_NS = 1_000_000_000


class Spans:
    """Starts spans with given ids. Thread-safe; begins to export when created."""

    def __init__(self, owner: str) -> None:
        """`owner` names this process."""
        self._ids = GivenIds()
        self._provider = provider(owner, self._ids)
        self._tracer = self._provider.get_tracer("sag-worker")

    def close(self) -> None:
        """Export the rest; takes as long as the collector does."""
        self._provider.shutdown()

    def attempt(
        self, claim: Claim, traceparent: str, queue: str, attributes: Mapping[str, Value]
    ) -> AttemptSpan | None:
        """Begin the span of an attempt; write that of the wait or the lost attempt before it."""
        task = TaskContext.of(claim.task_id, traceparent, claim.submitted_at_s)
        now_ns = time.time_ns()
        before_ns = _began_ns(now_ns, claim)
        common: dict[str, Value] = {
            "messaging.system": "celery",
            "messaging.destination.name": queue,
            "messaging.message.id": claim.task_id,
        }
        of_attempt = common | {
            "messaging.operation.name": "attempt", "messaging.operation.type": "process",
        }  # fmt: skip
        span = self.start(
            "attempt", task, SpanKind.CONSUMER, now_ns,
            {
                **of_attempt, **attributes, "sag.attempt": claim.attempt, "sag.fence": claim.fence,
                "sag.resumed_from_step": claim.checkpoint_step,
            },
            fence=claim.fence,
            links=task.links(range(max(1, claim.fence - MAX_LINKS), claim.fence)),
        )  # fmt: skip
        if not span.is_recording():
            return None
        if claim.lost_owner:
            number = claim.attempt - (claim.answer is ClaimAnswer.RUN)
            lost = self.start(
                "attempt", task, SpanKind.CONSUMER, before_ns,
                of_attempt | {"sag.attempt": number, "sag.worker": claim.lost_owner},
                fence=claim.fence - 1,
            )  # fmt: skip
            end_failed(lost, "worker_lost", now_ns)
        elif claim.since_s:
            self.start("wait", task, SpanKind.INTERNAL, before_ns, common).end(now_ns)
        return AttemptSpan(self, span)

    def push(
        self, due: Due, receiver: str, times_s: tuple[float, float], error: PushError | None
    ) -> None:
        """Write the span of a try to push a result, as `Traces.push`."""
        task = TaskContext.of(due.task_id, due.traceparent, due.submitted_at_s)
        is_message = due.kind is PushKind.REPLY_TO
        began_ns, ended_ns = map(wall_ns, times_s)
        span = self.start(
            "push", task, SpanKind.PRODUCER if is_message else SpanKind.CLIENT, began_ns,
            {
                "messaging.message.id": due.task_id,
                **({"messaging.destination.name": receiver} if is_message else _server(receiver)),
                "sag.push.kind": due.kind.value, "sag.push.try": due.push.tries + 1,
            },
            links=task.links([due.fence] if due.fence else []),
        )  # fmt: skip
        if error is None:
            span.end(ended_ns)
        else:
            end_failed(span, "push_given_up" if error.final else "push_failed", ended_ns)

    def start(  # noqa: PLR0913  # what a span is
        self,
        name: str,
        task: TaskContext,
        kind: SpanKind,
        began_ns: int,
        attributes: Mapping[str, Value],
        *,
        fence: int = 0,
        links: Sequence[Link] = (),
    ) -> Span:
        """Start a span below the caller's; one with a fence has the id of that attempt."""
        with self._ids.given(task.trace_id, task.attempt_id(fence) if fence else None):
            return self._tracer.start_span(
                name, task.parent, kind, attributes, links, began_ns,
                record_exception=False, set_status_on_exception=False,
            )  # fmt: skip

    def stage(self, parent: Span, stage: Stage, offset_ns: int) -> None:
        """Write the span of a stage of an attempt."""
        attributes: dict[str, Value] = {}
        if stage.unet_calls:
            attributes = {
                "sag.unet_calls": stage.unet_calls, "sag.shared_tasks": len(stage.shared),
            }  # fmt: skip
        span = self._tracer.start_span(
            stage.name,
            trace.set_span_in_context(parent, Context()),
            attributes=attributes,
            links=_peer_links(stage.shared),
            start_time=round(stage.began_s * _SECOND_NS) + offset_ns,
        )
        span.end(round(stage.ended_s * _SECOND_NS) + offset_ns)


class AttemptSpan:
    """The span of an attempt that has begun. Never ended, it is never exported."""

    def __init__(self, spans: Spans, span: Span) -> None:
        self._spans, self._span = spans, span
        self._offset_ns = time.time_ns() - time.perf_counter_ns()
        context = span.get_span_context()
        #: In W3C's form.
        self.traceparent = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        )

    def end(
        self, stages: Iterable[Stage], attributes: Mapping[str, Value], error: str | None
    ) -> None:
        """Write the spans of its stages and its own; `error` is a code, None without one."""
        for stage in stages:
            self._spans.stage(self._span, stage, self._offset_ns)
        self._span.set_attributes(attributes)
        if error is None:
            self._span.end()
        else:
            end_failed(self._span, error)


def end_failed(span: Span, error: str, ended_ns: int | None = None) -> None:
    """End a span as failed; `error` is a code, since messages may repeat what a caller wrote."""
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR, error))
    span.end(ended_ns)


def wall_ns(seconds: float) -> int:
    """Unix time in nanoseconds of a moment on `time.perf_counter`'s clock."""
    return time.time_ns() - time.perf_counter_ns() + round(seconds * _SECOND_NS)


def _peer_links(shared: Mapping[Peer, int]) -> list[Link]:
    """Links to the sampled attempts among these jobs, those that shared most calls first."""
    by_calls = sorted(shared.items(), key=lambda each: -each[1])
    contexts = (
        (trace.get_current_span(extract(peer.traceparent)).get_span_context(), peer, calls)
        for peer, calls in by_calls[:MAX_LINKS]
    )
    return [
        Link(context, {"messaging.message.id": peer.job_id, "sag.shared_calls": calls})
        for context, peer, calls in contexts
        if context.is_valid and context.trace_flags.sampled
    ]


def _began_ns(now_ns: int, claim: Claim) -> int:
    """Unix time in nanoseconds since when a claimed task waited, or its lost attempt ran.

    Not below 0, which no exporter can encode, with all spans of its batch: Redis users of producers
    may write a moment near 0, and this clock may be behind Redis's.
    """
    waited_s = claim.claimed_at_s - claim.since_s if claim.since_s else 0.0
    return max(0, now_ns - round(waited_s * _SECOND_NS))


def _server(receiver: str) -> dict[str, Value]:
    """Attributes of a host with or without a port."""
    host, _, port = receiver.rpartition(":")
    if not (host and port.isdecimal() and len(port) <= MAX_PORT_DIGITS):
        return {"server.address": receiver.strip("[]")}
    return {"server.address": host.strip("[]"), "server.port": int(port)}
