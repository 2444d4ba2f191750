"""The spans of a running worker, as an OTLP receiver gets them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from api_contracts import GenerationFailed
from tests.push.receiver import receiver as webhook_receiver
from tests.record.owners import record
from tests.service.conftest import END_S, LONG, SHORT, wait_for
from tests.traces.collector import FAILED
from worker import embedded
from worker.embedded import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from api_contracts import TaskHandle
    from tests.conftest import Service
    from tests.push.receiver import Receiver
    from tests.traces.collector import Collector, Received

TRACE, CALLER = "a" * 32, "b" * 16
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
#: Stages of an attempt whose model is loaded.
STAGES = ["encode", "denoise", "decode", "upload", "finish"]
SECRET = "whsec_" + "A" * 32


@pytest.fixture(scope="module")
def hook() -> Iterator[Receiver]:
    """A webhook receiver."""
    with webhook_receiver() as made:
        yield made


@pytest.fixture(scope="module")
def worker(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory, receiver: Collector, hook: Receiver,
) -> Iterator[Service]:  # fmt: skip
    """A worker that exports its spans every tenth of a second, with its model loaded."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(
            url, others=variables(receiver.url), lease_s="2",
            webhook_hosts=json.dumps([hook.origin]), webhook_secrets=json.dumps([SECRET]),
            webhook_private_addresses="true",
        ) as running,
    ):  # fmt: skip
        loaded = running.client.submit(SHORT)
        loaded.result(END_S)
        first = receiver.wait(loaded.task_id, ended)
        assert [each.name for each in first] == ["wait", "attempt", "load", *STAGES]
        yield running


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch, receiver: Collector) -> trace.Tracer:
    """The tracer of the application around the client."""
    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return provider.get_tracer("shop")


def variables(url: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def ended(names: list[str]) -> bool:
    return "attempt" in names


def named(spans: list[Received], name: str) -> Received:
    (found,) = [each for each in spans if each.name == name]
    return found


def test_a_task_is_one_trace_from_the_callers_span_to_the_push(
    worker: Service, receiver: Collector, hook: Receiver, application: trace.Tracer
) -> None:
    """A task is one trace of submit, wait, attempt with stages, and push, without its prompt."""
    wanted = SHORT | {"prompt": "a secret prompt", "num_inference_steps": 3, "webhook": hook.origin}
    with application.start_as_current_span("checkout") as checkout:
        task = worker.client.submit(wanted | {"negative_prompt": "another secret"})
    result = task.result(END_S)
    spans = receiver.wait(task.task_id, lambda names: {"attempt", "push"} <= {*names})
    submit, attempt, push = (named(spans, name) for name in ("submit", "attempt", "push"))
    assert submit.parent_id == f"{checkout.get_span_context().span_id:016x}"
    assert {each.trace_id for each in spans} == {submit.trace_id}
    below_submit = [each.name for each in spans if each.parent_id == submit.span_id]
    assert sorted(below_submit) == ["attempt", "push", "wait"]
    stages = [each for each in spans if each.parent_id == attempt.span_id]
    assert [each.name for each in stages] == STAGES
    assert all(each.began_ns <= each.ended_ns for each in spans)
    assert attempt.began_ns <= stages[0].began_ns
    assert all(a.ended_ns <= b.began_ns for a, b in pairwise(stages))
    assert stages[-1].ended_ns <= attempt.ended_ns
    denoise_s = (stages[1].ended_ns - stages[1].began_ns) / 1e9
    assert denoise_s == pytest.approx(result.timings.denoise_s, abs=0.001)
    assert push.linked == {attempt.span_id}
    assert push.attributes["server.address"] == "127.0.0.1"
    assert push.attributes["server.port"] == hook.port
    assert attempt.attributes["sag.outcome"] == "succeeded"
    assert attempt.attributes["sag.images"] == 1
    assert not [each for each in receiver.bodies if b"secret" in each]
    assert "traceparent" not in result.parameters


def test_tasks_that_shared_calls_link_each_other(worker: Service, receiver: Collector) -> None:
    """Tasks that shared calls link each other, with the number of calls that they shared."""
    tasks = worker.client.submit_many([SHORT | {"num_inference_steps": 25}] * 3)
    for task in tasks:
        task.result(END_S)
    found = {each.task_id: receiver.wait(each.task_id, ended) for each in tasks}
    attempts = {name: named(spans, "attempt") for name, spans in found.items()}
    shared: dict[tuple[str, str], int] = {}
    for name, spans in found.items():
        denoise = named(spans, "denoise")
        assert denoise.attributes["sag.unet_calls"] == 25
        for trace_id, span_id, facts in denoise.links:
            other = facts["messaging.message.id"]
            assert (trace_id, span_id) == (attempts[other].trace_id, attempts[other].span_id)
            shared[name, other] = facts["sag.shared_calls"]
    assert shared
    assert all(shared[other, name] == calls for (name, other), calls in shared.items())
    assert all(0 < calls <= 25 for calls in shared.values())


def test_a_celery_header_is_honoured(worker: Service, receiver: Collector) -> None:
    """A plain Celery message's `traceparent` is the parent, and is stored for later attempts.

    The request's own field wins: it belongs to the task, the header to one message of it.
    """
    plain = Celery("plain", broker=worker.broker_url)
    inner = f"00-{'c' * 32}-{'d' * 16}-01"
    for name, request in (("header", SHORT), ("both", SHORT | {"traceparent": inner})):
        plain.send_task(
            "sag.generate", kwargs={"request": request}, queue="generate.default", task_id=name,
            headers={"traceparent": TRACEPARENT}, priority=5,
        )  # fmt: skip
    plain.close()
    for name, parent_id in (("header", CALLER), ("both", "d" * 16)):
        attempt = named(receiver.wait(name, ended), "attempt")
        assert attempt.parent_id == parent_id
        stored = json.loads(record(worker.client.redis, worker.client.keys, name)["request"])
        assert stored["traceparent"][36:52] == parent_id


def test_a_failed_task_has_a_failed_span(worker: Service, receiver: Collector) -> None:
    """A failed task's span has the error's code, without the message, which repeats the request."""
    task = worker.client.submit(SHORT | {"prompt": "geheim", "num_inference_steps": 9999})
    with pytest.raises(GenerationFailed):
        task.result(END_S)
    spans = receiver.wait(task.task_id, ended)
    assert [each.name for each in spans] == ["wait", "attempt", "finish"]
    assert spans[1].status == (FAILED, "invalid_request")
    assert spans[1].attributes["error.type"] == "invalid_request"
    assert not [each for each in receiver.bodies if b"geheim" in each]


def test_an_unsampled_task_has_no_spans(worker: Service, receiver: Collector) -> None:
    """The caller's sampling decision is followed."""
    task = worker.client.submit(SHORT | {"traceparent": TRACEPARENT[:-2] + "00"})
    task.result(END_S)
    later = worker.client.submit(SHORT)
    later.result(END_S)
    receiver.wait(later.task_id, ended)
    assert receiver.of(task.task_id) == []


@pytest.mark.slow  # a worker of its own
def test_an_attempt_after_a_death_links_the_one_before(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory, receiver: Collector,
) -> None:  # fmt: skip
    """After kill -9 the next attempt links the dead one, whose span it writes; then a drain.

    The drained worker exports what it has before it exits: nothing was exported before.
    """
    others = variables(receiver.url) | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        with start_service(url, others=others, lease_s="2") as service:
            task = service.client.submit(LONG | {"traceparent": TRACEPARENT})
            wait_for(task, "progress")
            os.kill(owner_pid(service, task, url), signal.SIGKILL)
            wait_for_attempt(task, 2)
        spans = receiver.wait(task.task_id, lambda names: names.count("attempt") >= 2)
    died, after = [each for each in spans if each.name == "attempt"]
    assert died.status == (FAILED, "worker_lost")
    assert after.linked == {died.span_id}
    assert died.parent_id == after.parent_id == CALLER
    assert died.ended_ns == after.began_ns
    assert [each.attributes["sag.attempt"] for each in (died, after)] == [1, 2]
    assert after.attributes["sag.outcome"] in {"requeued", "succeeded"}
    assert died.attributes["sag.worker"] != after.resource["service.instance.id"]


@pytest.mark.slow  # a worker of its own
def test_a_worker_whose_collector_is_away_works_and_stops(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A worker whose collector is away makes its tasks, logs few lines and stops in its bound."""
    others = variables(f"http://127.0.0.1:{free_port()}")
    command = [sys.executable, "-m", "worker", "work", "--name", "away"]
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        with start_service(url, command, others) as service:
            for task in service.client.submit_many([SHORT] * 20):
                task.result(END_S)
            began_s = time.monotonic()
            service.process.terminate()
            assert service.process.wait(END_S) == 0
            assert time.monotonic() - began_s < 30
        log = service.log.read_text()
    lines = [line for line in log.splitlines() if "worker.tracing" in line]
    assert [line for line in lines if "traces are exported" in line] == lines[:1]
    assert 2 <= len(lines) <= 5, lines
    assert log.count("Connection refused") == 1
    assert "Traceback" not in log


def owner_pid(service: Service, task: TaskHandle, url: str) -> int:
    """The process that runs a task, from its log: owners of `run` are named by their device."""
    claimed = [line for line in service.log.read_text().splitlines() if task.task_id in line]
    return int(next(line for line in claimed if "claimed" in line).split()[1])


def wait_for_attempt(task: TaskHandle, attempt: int) -> None:
    for event in task.events(timeout=END_S):
        if event.type == "progress" and event.attempt == attempt:
            return
