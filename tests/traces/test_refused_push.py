"""The push of a refused request belongs to the trace of its attempt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.events import TaskStatus
from api_contracts.pushes import Push, PushKind
from tests.record.owners import ERROR, take, worker
from tests.traces.attempts import exporting
from worker.execution.delivery import MAX_REFUSED_CHARS, Delivery
from worker.push.pusher import MAX_HOST_CHARS, _host
from worker.record.push_queue import Due
from worker.tracing.task_context import TaskContext

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys
    from tests.traces.collector import Collector

HEADER = f"00-{'a' * 32}-{'b' * 16}-01"
FIELD = f"00-{'c' * 32}-{'d' * 16}-01"
HOOK = "https://example.org/x"
LONG = "x" * MAX_REFUSED_CHARS


def due(redis: Redis, keys: Keys, stored: str) -> Due:
    """The push of a task that is refused, with what its record stores of its request."""
    records = worker(redis, keys, "first")
    claim = take(records, "task", request=stored)
    assert records.finish(claim, TaskStatus.FAILED, ERROR, {"error": ERROR})
    records.pushes.add("task")
    (found,) = records.pushes.take(1)
    return found


@pytest.mark.parametrize("prompt", [5, LONG, "\ud800"], ids=["short", "long", "surrogate"])
@pytest.mark.parametrize(
    ("field", "header", "used"),
    [({}, HEADER, HEADER), ({"traceparent": None}, HEADER, HEADER),
     ({"traceparent": FIELD}, HEADER, FIELD), ({"traceparent": FIELD}, None, FIELD),
     ({}, "nonsense", "")],
)  # fmt: skip
def test_the_push_of_a_refused_request_has_its_caller(
    field: dict[str, Any], header: str | None, used: str, prompt: object, redis: Redis, keys: Keys
) -> None:
    """A refused request's push has the caller's span, of field or header, stored whole or cut."""
    request = {"prompt": prompt, "webhook": HOOK, **field}
    delivery = Delivery("task", request, header_traceparent=header)
    found = due(redis, keys, delivery.refused_json)
    assert (found.target, found.traceparent) == (HOOK, used)
    assert found.traceparent == delivery.traceparent


def test_a_malformed_field_is_stored_as_it_was_sent() -> None:
    """A request that is refused for its `traceparent` is refused again if it is sent again."""
    delivery = Delivery("t", {"prompt": "x", "traceparent": "bad"}, header_traceparent=HEADER)
    assert json.loads(delivery.refused_json) == delivery.request


@pytest.mark.parametrize("odd", ["nonsense", 7, ["x"], {"a": 1}, HEADER + "\n"])
def test_an_odd_field_of_a_record_is_no_caller(redis: Redis, keys: Keys, odd: object) -> None:
    """An odd `traceparent` in a record, where a producer may write anything, is no caller."""
    stored = {"prompt": 1, "webhook": HOOK, "traceparent": odd}
    assert not due(redis, keys, json.dumps(stored)).traceparent


@pytest.mark.parametrize(
    ("target", "attributes"),
    [
        ("https://example.org/x", {"server.address": "example.org"}),
        ("https://user:geheim@example.org:8443/x",
         {"server.address": "example.org", "server.port": 8443}),
        ("http://[::1]:80/", {"server.address": "::1", "server.port": 80}),
        ("http://[::1]", {"server.address": "::1"}),
        ("http://x:123456", {"server.address": "x:123456"}),
        ("x" * 10**6, {"server.address": "x" * MAX_HOST_CHARS}),
    ],
)  # fmt: skip
def test_the_host_of_a_push(
    target: str, attributes: dict[str, Any], receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push's host and port are attributes of their own, also of a target that no one checked."""
    task_id = f"host-{len(receiver.spans)}"
    found = Due(
        task_id, PushKind.WEBHOOK, Push(state="waiting"), target, 1, b"", FIELD, 5.0, fence=2
    )
    with exporting(monkeypatch, receiver.url) as traces:
        traces.push(found, _host(found), (1.0, 2.0), None)
    (span,) = receiver.of(task_id)
    own = {name: each for name, each in span.attributes.items() if name.startswith("server.")}
    assert own == attributes
    assert span.linked == {f"{TaskContext.of(task_id, FIELD, 5.0).attempt_id(2):016x}"}
