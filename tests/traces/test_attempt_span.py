"""What an attempt's span says of its outcome, when it is written, and what its task keeps of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts.errors import ErrorCode, TaskError
from api_contracts.pushes import Push, PushKind
from api_contracts.result import GenerationResult
from tests.record.busy_executor import WAIT_S, Busy
from tests.record.owners import RESULT, take_over, worker
from tests.traces.attempts import exporting, stage
from tests.traces.collector import FAILED
from worker.config.models import SHIPPED_MODEL
from worker.config.settings import Settings
from worker.errors import PushError
from worker.execution import attempt_span
from worker.execution.delivery import Delivery
from worker.execution.outcome import (
    Outcome,
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    TaskSucceeded,
)
from worker.execution.resolved_request import ResolvedRequest
from worker.record.push_queue import Due
from worker.recovery.active_tasks import ActiveTask
from worker.tracing.task_context import TaskContext
from worker.tracing.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from api_contracts.names import Keys
    from tests.traces.collector import Collector

IMAGE = {
    "key": "k", "url": None, "sha256": "0" * 64, "bytes": 1, "width": 64, "height": 32, "seed": 1,
    "nsfw_content_detected": None,
}  # fmt: skip
MADE = GenerationResult.model_validate(RESULT | {"images": [IMAGE]})
NO_MEMORY = TaskError(code=ErrorCode.OUT_OF_MEMORY, message="geheim", retryable=True)
HEADER = f"00-{'a' * 32}-{'b' * 16}-01"
#: Receivers of pushes, and what a span says of them.
PLACES: dict[PushKind, tuple[str, dict[str, Any]]] = {
    PushKind.WEBHOOK: ("[::1]:8080", {"server.address": "::1", "server.port": 8080}),
    PushKind.REPLY_TO: ("shop", {"messaging.destination.name": "shop"}),
}
FIELD = f"00-{'c' * 32}-{'d' * 16}-01"


class StubSpan:
    """Keeps what an attempt's span is ended with."""

    traceparent = HEADER
    ended: Any = None

    def end(self, *given: object) -> None:
        """End once."""
        assert self.ended is None
        self.ended = given


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (TaskSucceeded(MADE), None),
        (TaskFailed(NO_MEMORY), "out_of_memory"),
        (TaskCancelled(3), None),
        (TaskExpired(3), "deadline_exceeded"),
        (TaskRequeued("worker drained at step 3", counts=False), None),
        (TaskRequeued("out_of_memory: CUDA", counts=True), "out_of_memory"),
        (TaskRequeued("worker stalled: a step", counts=True), "worker_stalled"),
    ],
    ids=lambda each: getattr(each, "label", None),
)
def test_the_code_of_an_outcome(outcome: Outcome, error: str | None) -> None:
    """Failed attempts have a code, no message; cancelled and drained ones have not failed."""
    task, span = ActiveTask("t"), StubSpan()
    task.span = cast("Any", span)
    task.control.engine_stages = lambda: [stage("encode")]
    with task.control.stage("upload"):
        pass
    attempt_span.end(Traces(), task, outcome)
    stages, attributes, code = span.ended
    assert [each.name for each in stages] == ["encode", "upload"]
    assert attributes["sag.outcome"] == outcome.label
    assert code == error
    assert "geheim" not in str(span.ended)
    if isinstance(outcome, TaskSucceeded):
        assert (attributes["sag.images"], attributes["sag.width_px"]) == (1, 64)
    attempt_span.end(Traces(), task, outcome)  # as a slot's thread does after a stall was reported


def test_a_stage_that_fails_has_a_span() -> None:
    """A stage that raises has a span, which ends where it raises."""
    task = ActiveTask("t")
    with pytest.raises(OSError, match="full"), task.control.stage("upload"):
        raise OSError("full")
    assert [each.name for each in task.control.stages] == ["upload"]


def test_a_superseded_attempt_is_written_by_its_successor_alone() -> None:
    """A worker that was frozen, and whose task another one has claimed, writes no second span."""
    task, span = ActiveTask("t"), StubSpan()
    task.span = cast("Any", span)
    attempt_span.end(Traces(), task, TaskDropped("another worker has claimed it"))
    assert span.ended is None


@pytest.fixture
def busy(
    engine_is_imported: None, redis: Redis, keys: Keys, namespace: str, receiver: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Busy]:  # fmt: skip
    """An executor that exports spans, and whose engine is loading."""
    with exporting(monkeypatch, receiver.url) as traces:
        made = Busy(worker(redis, keys, "first"), namespace)
        made.executor._traces = traces
        try:
            yield made
        finally:
            made.close()


def test_a_stalled_worker_exports_before_it_exits(busy: Busy, receiver: Collector) -> None:
    """The attempts that a stall ends are written and exported by the report of the stall."""
    delivered = busy.deliver("stalled")
    assert busy.building.wait(WAIT_S)
    busy.executor.report_stall("a step")
    attempt = next(each for each in receiver.of("stalled") if each.name == "attempt")
    assert attempt.status == (FAILED, "worker_stalled")
    busy.go_on.set()
    delivered.result(WAIT_S)
    assert len([each for each in receiver.of("stalled") if each.name == "attempt"]) == 1


def test_an_attempt_that_another_worker_took_is_written_once(
    busy: Busy, receiver: Collector, redis: Redis, keys: Keys
) -> None:
    """An attempt that another worker took is not written again by the frozen worker's end."""
    delivered = busy.deliver("frozen")
    assert busy.building.wait(WAIT_S)
    take_over(worker(redis, keys, "other"), "frozen")
    busy.go_on.set()
    assert isinstance(delivered.result(WAIT_S), TaskDropped)
    busy.executor._traces.close()
    assert [each.name for each in receiver.of("frozen")] == ["wait"]


def test_an_attempt_that_redis_keeps_open_is_not_written(
    busy: Busy, receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that Redis keeps open is not written; the next claim writes its span."""
    delivered = busy.deliver("open")
    assert busy.building.wait(WAIT_S)

    def refuse(*_: Any, **__: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(busy.executor._record, "requeue", refuse)
    monkeypatch.setattr(busy.executor._record, "finish", refuse)
    busy.go_on.set()
    assert isinstance(delivered.exception(WAIT_S), RedisConnectionError)
    busy.executor._traces.close()
    assert [each.name for each in receiver.of("open")] == ["wait"]


@pytest.mark.parametrize(
    ("field", "header", "used"),
    [
        (None, None, ""),
        (None, HEADER, HEADER),
        (FIELD, HEADER, FIELD),
        (FIELD, None, FIELD),
        (None, "nonsense", ""),
        (None, HEADER + "\n", ""),
        (None, 7, ""),
        (7, HEADER, HEADER),
    ],
)
def test_the_field_wins_over_the_header(field: Any, header: Any, used: str) -> None:
    """The request's own `traceparent` is used, else a header that is valid."""
    request = {"prompt": "x"} | ({} if field is None else {"traceparent": field})
    assert Delivery("t", request, header_traceparent=header).traceparent == used


@pytest.mark.parametrize("request_", [None, [], "x", {"prompt": 1}])
def test_a_refused_request_may_have_any_form(request_: Any) -> None:
    """The header is used for a request that can't be read."""
    assert Delivery("t", request_, header_traceparent=HEADER).traceparent == HEADER


@pytest.mark.parametrize("given", ["field", "header"])
def test_no_byte_of_an_image_depends_on_traces(given: str) -> None:
    """`traceparent` is kept for later attempts, and is in no file."""
    settings = Settings(models={"default": {"path": str(SHIPPED_MODEL)}})
    plain = Delivery("t", {"prompt": "x"}).resolve(settings)
    request = {"prompt": "x", "traceparent": HEADER} if given == "field" else {"prompt": "x"}
    traced = Delivery("t", request, header_traceparent=HEADER).resolve(settings)
    assert isinstance(plain, ResolvedRequest)
    assert isinstance(traced, ResolvedRequest)
    assert traced.request.traceparent == HEADER
    assert json.dumps([traced.origin, traced.parameters]) == json.dumps(
        [plain.origin, plain.parameters]
    )
    assert traced.job({}) == plain.job({})


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        (PushKind.WEBHOOK, None, ""),
        (PushKind.WEBHOOK, PushError("geheim"), "push_failed"),
        (PushKind.REPLY_TO, PushError("geheim", final=True), "push_given_up"),
    ],
)
def test_a_push_links_the_attempt_that_ended_the_task(
    kind: PushKind, error: PushError | None, code: str,
    receiver: Collector, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each try has a span below the caller's, with its number, receiver and code."""
    task_id = f"push-{kind.value}-{code}"
    push = Push.model_validate({"state": "waiting", "tries": 2})
    due = Due(task_id, kind, push, "", 1, b"", FIELD, 5.0, fence=3)
    to, place = PLACES[kind]
    with exporting(monkeypatch, receiver.url) as traces:
        now_s = stage("x").ended_s  # the span is written later than the try has ended
        traces.push(due, to, (now_s - 10, now_s - 9), error)
    (span,) = receiver.of(task_id)
    assert (span.trace_id, span.parent_id) == ("c" * 32, "d" * 16)
    assert span.attributes == place | {
        "messaging.message.id": task_id, "sag.push.kind": kind.value, "sag.push.try": 3,
    } | ({"error.type": code} if code else {})  # fmt: skip
    assert span.ended_ns - span.began_ns == pytest.approx(1e9, rel=0.01)
    assert span.status == ((FAILED, code) if code else (0, ""))
    assert span.linked == {f"{TaskContext.of(task_id, FIELD, 5.0).attempt_id(3):016x}"}
    assert not [each for each in receiver.bodies if b"geheim" in each]
