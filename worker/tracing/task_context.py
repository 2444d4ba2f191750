"""Where a task's spans belong: its trace, its parent, and the ids of its attempts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class TaskContext:
    """Where a task's spans belong."""

    task_id: str
    #: Has the caller's span, or is empty.
    parent: Context
    trace_id: int

    @classmethod
    def of(cls, task_id: str, traceparent: str, submitted_at_s: float) -> TaskContext:
        """Every process derives the same one."""
        parent = extract(traceparent)
        caller = trace.get_current_span(parent).get_span_context()
        own = _derived(f"{task_id} {submitted_at_s!r}", 16)
        return cls(task_id, parent, caller.trace_id if caller.is_valid else own)

    def attempt_id(self, fence: int) -> int:
        """The id of an attempt's span."""
        return _derived(f"{self.trace_id:032x} {self.task_id} {fence}", 8)

    def links(self, fences: Iterable[int]) -> list[Link]:
        """Links to the attempts with these fences."""
        flags = TraceFlags(TraceFlags.SAMPLED)
        return [
            Link(
                SpanContext(
                    self.trace_id, self.attempt_id(fence), is_remote=True, trace_flags=flags
                )
            )
            for fence in fences
        ]


def extract(traceparent: str) -> Context:
    """The context with the span that a `traceparent` names; empty where it is not valid."""
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _derived(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size])
