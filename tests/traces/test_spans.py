"""The spans of attempts: their ids, links, times and attributes, as they come over the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.traces.attempts import QUEUE, claim, exporting, stage
from tests.traces.collector import FAILED
from worker.job_control import Peer
from worker.record.claim import ClaimAnswer

if TYPE_CHECKING:
    from tests.traces.collector import Collector

TRACE, CALLER = "a" * 32, "b" * 16
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
MS = 1_000_000


def test_an_attempt_belongs_to_the_callers_span(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wait` and `attempt` are children of the caller's span, stages those of the attempt."""
    with exporting(monkeypatch, receiver.url) as traces:
        span = traces.attempt(claim("below"), TRACEPARENT, QUEUE, {"sag.model": "default"})
        assert span is not None
        span.end([stage("encode"), stage("upload")], {"sag.outcome": "succeeded"}, None)
    wait, *others = receiver.of("below")
    attempt = next(each for each in others if each.name == "attempt")
    stages = [each for each in others if each is not attempt]
    assert {each.trace_id for each in (wait, *others)} == {TRACE}
    assert wait.name == "wait"
    assert wait.parent_id == attempt.parent_id == CALLER
    assert 400 * MS < wait.ended_ns - wait.began_ns < 600 * MS
    assert wait.ended_ns == attempt.began_ns
    assert [each.name for each in stages] == ["encode", "upload"]
    assert {each.parent_id for each in stages} == {attempt.span_id}
    assert all(99 * MS < each.ended_ns - each.began_ns < 101 * MS for each in stages)
    assert span.traceparent.split("-")[1:3] == [TRACE, attempt.span_id]
    assert attempt.status == (0, "")
    assert attempt.attributes["messaging.destination.name"] == QUEUE
    assert attempt.attributes["sag.outcome"] == "succeeded"
    assert attempt.resource["service.name"] == "sag-worker"
    assert attempt.resource["service.instance.id"] == "host:name:1"


def test_later_attempts_link_those_before(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts of any process are in one trace and link all before them, by derived ids."""
    submitted_s = claim().submitted_at_s
    for fence in (1, 2, 3):
        given = claim("again", fence=fence, attempt=fence, submitted_at_s=submitted_s)
        with exporting(monkeypatch, receiver.url, f"host:name:{fence}") as traces:
            span = traces.attempt(given, "", QUEUE, {})
            assert span is not None
            span.end([], {}, None)
    first, second, third = [each for each in receiver.of("again") if each.name == "attempt"]
    assert first.trace_id == second.trace_id == third.trace_id
    assert len({first.span_id, second.span_id, third.span_id}) == 3
    assert (first.linked, second.linked) == (set(), {first.span_id})
    assert third.linked == {first.span_id, second.span_id}
    assert {each.parent_id for each in (first, second, third)} == {""}


def test_tasks_of_one_id_have_traces_of_their_own(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that is submitted again after its record's end begins another trace."""
    with exporting(monkeypatch, receiver.url) as traces:
        for submitted_at_s in (1.0, 2.0):
            span = traces.attempt(claim("id", submitted_at_s=submitted_at_s), "", QUEUE, {})
            assert span is not None
            span.end([], {}, None)
    assert len({each.trace_id for each in receiver.of("id")}) == 2


@pytest.mark.parametrize(
    ("answer", "attempt", "lost"), [(ClaimAnswer.RUN, 2, 1), (ClaimAnswer.EXHAUSTED, 3, 3)]
)
def test_the_attempt_of_a_dead_worker_is_written_by_the_next(
    answer: ClaimAnswer,
    attempt: int,
    lost: int,
    receiver: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever takes over writes the span that a dead worker could not, with the id it had."""
    task_id, submitted_s = f"lost-{answer}", claim().submitted_at_s
    with exporting(monkeypatch, receiver.url) as traces:
        died = traces.attempt(claim(task_id, submitted_at_s=submitted_s), TRACEPARENT, QUEUE, {})
        assert died is not None
        taken = claim(
            task_id, answer=answer, fence=2, attempt=attempt, submitted_at_s=submitted_s,
            lost_owner="host:gone:1",
        )  # fmt: skip
        span = traces.attempt(taken, TRACEPARENT, QUEUE, {})
        assert span is not None
        span.end([], {}, None)
    (wait, before, after) = receiver.of(task_id)
    assert wait.name == "wait"
    assert died.traceparent.split("-")[1:3] == [TRACE, before.span_id]
    assert before.attributes["sag.worker"] == "host:gone:1"
    assert before.attributes["sag.attempt"] == lost
    assert before.status == (FAILED, "worker_lost")
    assert before.ended_ns == after.began_ns
    assert after.linked == {before.span_id}
    assert after.attributes["sag.attempt"] == attempt


def test_a_denoise_span_links_the_tasks_that_shared_its_calls(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each link has the number of shared calls; those of unsampled tasks are only counted."""
    shared = {
        Peer("one", f"00-{TRACE}-{'1' * 16}-01"): 3,
        Peer("two", f"00-{TRACE}-{'2' * 16}-03"): 7,
        Peer("unsampled", f"00-{TRACE}-{'3' * 16}-00"): 9,
        Peer("untraced", ""): 9,
    }
    with exporting(monkeypatch, receiver.url) as traces:
        span = traces.attempt(claim("shared"), TRACEPARENT, QUEUE, {})
        assert span is not None
        span.end([stage("denoise", unet_calls=9, shared=shared)], {}, None)
    (denoise,) = [each for each in receiver.of("shared") if each.name == "denoise"]
    assert denoise.links == [
        (TRACE, "2" * 16, {"messaging.message.id": "two", "sag.shared_calls": 7}),
        (TRACE, "1" * 16, {"messaging.message.id": "one", "sag.shared_calls": 3}),
    ]
    assert denoise.attributes == {"sag.unet_calls": 9, "sag.shared_tasks": 4}


def test_links_are_limited_to_those_that_shared_most(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span has at most 100 links; the SDK's own limit would drop the first ones."""
    shared = {Peer(f"{n}", f"00-{TRACE}-{n:016x}-01"): n for n in range(1, 301)}
    with exporting(monkeypatch, receiver.url) as traces:
        span = traces.attempt(claim("many", fence=500), TRACEPARENT, QUEUE, {})
        assert span is not None
        span.end([stage("denoise", unet_calls=300, shared=shared)], {}, None)
    found = {each.name: each for each in receiver.of("many")}
    counts = [facts["sag.shared_calls"] for _, _, facts in found["denoise"].links]
    assert counts == list(range(300, 200, -1))
    assert len(found["attempt"].links) == 100


@pytest.mark.parametrize("traceparent", [f"00-{TRACE}-{CALLER}-00", f"00-{TRACE}-{CALLER}-02"])
def test_the_caller_decides_whether_a_task_is_sampled(
    traceparent: str, receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task whose caller did not sample has no spans."""
    with exporting(monkeypatch, receiver.url) as traces:
        assert traces.attempt(claim("unsampled"), traceparent, QUEUE, {}) is None
    assert receiver.of("unsampled") == []


def test_the_usual_variables_are_followed(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampler, service name and resource attributes are the SDK's own variables."""
    with exporting(monkeypatch, receiver.url, TRACES_SAMPLER="always_off") as traces:
        assert traces.attempt(claim("off"), "", QUEUE, {}) is None
    monkeypatch.delenv("OTEL_TRACES_SAMPLER")
    named = {"SERVICE_NAME": "pictures", "RESOURCE_ATTRIBUTES": "deployment.environment=test"}
    with exporting(monkeypatch, receiver.url, **named) as traces:
        span = traces.attempt(claim("named"), "", QUEUE, {})
        assert span is not None
        span.end([], {}, None)
    resource = receiver.of("named")[-1].resource
    assert resource["service.name"] == "pictures"
    assert resource["deployment.environment"] == "test"


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{CALLER}-01"])
def test_an_invalid_traceparent_begins_a_trace(
    traceparent: str, receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a usable caller's span the trace begins with the task."""
    task_id = f"invalid-{len(traceparent)}"
    with exporting(monkeypatch, receiver.url) as traces:
        span = traces.attempt(claim(task_id), traceparent, QUEUE, {})
        assert span is not None
        span.end([], {}, "internal")
    attempt = receiver.of(task_id)[-1]
    assert attempt.parent_id == ""
    assert attempt.trace_id != "0" * 32
    assert attempt.status == (FAILED, "internal")
    assert attempt.attributes["error.type"] == "internal"
