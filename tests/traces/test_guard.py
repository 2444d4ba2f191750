"""Nothing that is raised while a span is written ends a task, a push or the report of a stall."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts.pushes import Push, PushKind
from tests.record.busy_executor import WAIT_S, Busy
from tests.record.owners import worker
from tests.traces.attempts import claim
from worker.errors import PushError
from worker.execution import attempt_span
from worker.execution.delivery import Delivery
from worker.execution.outcome import TaskCancelled, TaskFailed
from worker.push.pusher import Pusher
from worker.record.push_queue import Due
from worker.recovery.active_tasks import ActiveTask
from worker.tracing import report_limit
from worker.tracing.traces import Traces

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys

DUE = Due("task", PushKind.WEBHOOK, Push(state="waiting"), "https://example.org/x", 1, b"")


class BrokenSpans:
    """Spans of an SDK of which every call raises; so does each span, at its end."""

    closed = False

    def attempt(self, *_: object) -> NoReturn:
        """Raise."""
        raise OverflowError("a sampler")

    def push(self, *_: object) -> NoReturn:
        """Raise."""
        raise OverflowError("a processor")

    def close(self) -> None:
        """End without an error: it has a thread of its own."""
        self.closed = True


class BrokenSpan:
    """A span that can't be ended."""

    traceparent = ""

    def end(self, *_: object) -> NoReturn:
        """Raise."""
        raise OverflowError("a processor")


class StubPushes:
    """A queue of pushes that notes what is settled."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def settle(self, *_: object) -> None:
        """Note the call."""
        self._calls.append("settle")


def broken() -> Traces:
    traces = Traces("host:name:1")
    traces._spans = cast("Any", BrokenSpans())
    return traces


def test_no_error_of_a_span_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    """Begin and end of an attempt, and a push, succeed without their spans; the log says so."""
    traces, task = broken(), ActiveTask("task")
    attempt_span.begin(traces, task, claim(), Delivery("task", {"prompt": "x"}), None)
    assert task.span is None
    task.span = cast("Any", BrokenSpan())
    attempt_span.end(traces, task, TaskCancelled(3))
    traces.push(DUE, "example.org", (1.0, 2.0), PushError("x"))
    (warning,) = [each for each in caplog.records if each.levelno > logging.INFO]
    assert warning.getMessage() == "traces: a span is missing"
    assert "a sampler" in caplog.text


def test_missing_spans_are_logged_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of many missing spans one is logged a minute, with the number of the others."""
    traces = broken()
    for _ in range(1000):
        assert traces.attempt(claim(), "", "queue", {}) is None
    assert len(caplog.records) == 1
    monkeypatch.setattr(report_limit, "REPORT_INTERVAL_S", 0.0)
    traces.attempt(claim(), "", "queue", {})
    assert "(999 reports were left out)" in caplog.records[-1].getMessage()


def test_spans_may_be_closed_at_any_moment() -> None:
    """A thread that has seen that traces are on does not fail where another one closes them."""
    traces = broken()

    class Closing(Traces):
        @property
        def is_on(self) -> bool:
            on = super().is_on
            self.close()
            return on

    closing = Closing()
    closing._spans = traces._spans
    task = ActiveTask("task")
    attempt_span.begin(closing, task, claim(), Delivery("task", {"prompt": "x"}), None)
    assert task.span is None


@pytest.mark.parametrize("redis_answers", [True, False])
def test_a_push_is_settled_before_its_span(
    redis_answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push is settled before its span, whatever that does, so that it is not pushed again.

    The span is written also where the outcome can't be: the try was made.
    """
    calls: list[str] = []
    pushes, traces = StubPushes(calls), broken()
    if not redis_answers:

        def away(*_: object) -> NoReturn:
            raise RedisConnectionError("away")

        monkeypatch.setattr("worker.push.pusher.retry_redis", away)
    monkeypatch.setattr(traces._spans, "push", lambda *_: calls.append("span"))
    pusher = Pusher(cast("Any", pushes), cast("Any", None), cast("Any", None), 60.0, traces)
    monkeypatch.setattr(pusher, "_tried", lambda _: None)
    pusher._running[DUE.task_id, DUE.kind] = "", 0.0
    pusher._try(DUE)
    assert calls == (["settle", "span"] if redis_answers else ["span"])
    assert not pusher._running


@pytest.mark.usefixtures("engine_is_imported")
def test_a_task_ends_without_its_spans(redis: Redis, keys: Keys, namespace: str) -> None:
    """A delivery has its own outcome though each span raises."""
    busy = Busy(worker(redis, keys, "first"), namespace)
    busy.executor._traces = broken()
    try:
        delivered = busy.deliver("task")
        busy.go_on.set()
        assert delivered.result(WAIT_S).label == "requeued"
    finally:
        busy.close()


@pytest.mark.usefixtures("engine_is_imported")
def test_spans_are_exported_where_a_stall_can_not_be_reported(
    redis: Redis, keys: Keys, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spans of this process are closed, though Redis refuses the requeue of its tasks."""
    busy = Busy(worker(redis, keys, "first"), namespace)
    spans = BrokenSpans()
    busy.executor._traces._spans = cast("Any", spans)

    def refuse(*_: Any, **__: Any) -> None:
        raise RedisConnectionError("away")

    try:
        delivered = busy.deliver("stalled")
        assert busy.building.wait(WAIT_S)
        with monkeypatch.context() as patched:
            patched.setattr(busy.executor._record, "requeue", refuse)
            with pytest.raises(RedisConnectionError):
                busy.executor.report_stall("a step")
        assert spans.closed
        busy.go_on.set()
        assert not isinstance(delivered.result(WAIT_S), TaskFailed)
    finally:
        busy.close()
