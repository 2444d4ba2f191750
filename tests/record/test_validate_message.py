"""Validation of messages: each is accepted, refused or dropped with a reason."""

from __future__ import annotations

import json
import pickle

import pytest
from kombu import Connection

from api_contracts import GenerationClient, names
from tests.record.mail import HEADERS, celery_takes, fault_in, message
from worker.broker.validate_message import NOT_AFTER, normalize


def test_a_good_message_passes(client: GenerationClient, redis_url: str, namespace: str) -> None:
    """A message of our client reaches Celery with its body unchanged."""
    sent = {"prompt": "x", "model": namespace, "metadata": {"k": "\u00e4"}}
    client.submit(sent, "good")
    with Connection(redis_url, transport_options=names.TRANSPORT_OPTIONS) as connection:
        channel = connection.channel()
        made = channel.basic_get(names.queue_name(namespace))
        before = made.body, made.content_type, made.content_encoding
        assert normalize(made) is None
        assert (made.body, made.content_type, made.content_encoding) == before
        request = celery_takes(made)
        assert (request.id, request.name, request.kwargs) == (
            "good",
            "sag.generate",
            {"request": sent},
        )
        channel.basic_ack(made.delivery_tag)


@pytest.mark.parametrize(
    "headers",
    [
        None,
        [],
        "headers",
        {},
        {"id": "t"},
        {**HEADERS, "task": "celery.backend_cleanup"},
        {**HEADERS, "task": ["sag.generate"]},
        {"task": names.TASK_NAME},
        *({**HEADERS, "id": bad} for bad in (None, 5, "", "../t", "t\n", "{t}", ["t"], "a" * 129)),
    ],
)
def test_a_message_without_a_task_is_dropped_with_a_reason(headers: object) -> None:
    """A message without our task's name or a task id is dropped with a reason."""
    reason = normalize(message(headers=headers))
    assert reason is not None
    assert len(reason) < 500


@pytest.mark.parametrize("name", ["task", "id", "expires"])
def test_what_is_nested_too_deep_has_a_reason_too(name: str) -> None:
    """A header that is nested too deep for repr has a reason too."""
    nest: list[object] = []
    for _ in range(100_000):
        nest = [nest]
    made = message(headers={**HEADERS, name: nest})
    assert "nested too deep" in str(normalize(made) or fault_in(made))


@pytest.mark.parametrize(
    "body",
    [
        "", b"", "not JSON", b"\xff\xfe", "5", "null", '"text"', "{}", "[]", "[[], {}]",
        "[[], {}, {}, {}]", "[5, {}, {}]", "[[], 5, {}]", "[[], {}, 5]", "[" * 100_000,
        '[[], {"request": ' + "9" * 5000 + "}, {}]", '{"args": [], "kwargs": {}}', None, 5,
    ],
)  # fmt: skip
def test_a_malformed_body_is_refused(body: object) -> None:
    """A body that is not `[args, kwargs, embed]` is refused as invalid."""
    made = message(body)
    assert normalize(made) is None
    assert fault_in(made)


@pytest.mark.parametrize("kind", ["application/x-python-serialize", "text/plain", None, 5, [], {}])
def test_only_json_is_read(kind: object) -> None:
    """Pickle, YAML and other content types are refused."""
    made = message(pickle.dumps([[], {"request": {}}, {}]), content_type=kind)
    assert normalize(made) is None
    assert fault_in(made)


@pytest.mark.parametrize("encoding", [5, ["utf-8"], {}, "no-such-encoding", "\ud800"])
def test_any_encoding_is_handled_or_refused(encoding: object) -> None:
    """Any content encoding is either handled or refused."""
    made = message(content_encoding=encoding)
    assert normalize(made) is None
    celery_takes(made)


@pytest.mark.parametrize(
    "header",
    [
        {"eta": "2030-01-01T00:00:00+00:00"},
        {"eta": 5},
        {"expires": 5},
        {"expires": ["2030"]},
        {"expires": "soon"},
        {"expires": ""},
        {"expires": "2030-13-45T99:00:00"},
    ],
)
def test_times_that_are_not_served_are_refused(header: dict[str, object]) -> None:
    """`eta`, `countdown` and a malformed `expires` are refused."""
    made = message(headers={**HEADERS, **header})
    assert normalize(made) is None
    assert fault_in(made)
    assert celery_takes(made).expires is None


@pytest.mark.parametrize(
    ("expires", "at_s"),
    [
        ("2030-01-01T00:00:00+00:00", 1893456000.0),
        ("2001-01-01T01:00:00.5+01:00", 978307200.5),
        ("2001-01-01T00:00:00", 978307200.0),
        (None, None),
    ],
)
def test_an_expiry_is_hidden_from_celery(expires: str | None, at_s: float | None) -> None:
    """`expires` is passed to our task and hidden from Celery, which would drop the task."""
    made = message(headers={**HEADERS, "expires": expires})
    assert normalize(made) is None
    assert fault_in(made) is None
    assert made.headers[NOT_AFTER] == at_s
    request = celery_takes(made)
    assert request.expires is None
    assert not request.revoked()


@pytest.mark.parametrize("name", ["callbacks", "errbacks", "chain", "chord"])
@pytest.mark.parametrize("value", [5, [5], [{"task": "notify.me"}], {"task": "x", "args": []}])
def test_follow_ups_are_refused(name: str, value: object) -> None:
    """Callbacks, chains and chords are refused by name: an error in one would keep the slot."""
    made = message(json.dumps([[], {"request": {}}, {name: value}]))
    assert normalize(made) is None
    assert name in (fault_in(made) or "")


def test_protocol_1_is_refused() -> None:
    """A message of Celery's protocol 1 is refused by name."""
    body = {"task": names.TASK_NAME, "id": "t", "args": [], "kwargs": {"request": {}}}
    made = message(json.dumps(body), headers={})
    assert normalize(made) is None
    assert "protocol" in (fault_in(made) or "")
    assert celery_takes(made).id == "t"


def test_headers_have_the_types_that_celery_expects() -> None:
    """Headers have the types that Celery expects; foreign ones have no effect."""
    strange = {name: [{"odd": 5}] for name in (
        "retries", "timelimit", "group", "root_id", "parent_id", "shadow", "stamps", "origin",
        "replaced_task_nesting", "stamped_headers", "argsrepr", "ignore_result", "lang",
    )}  # fmt: skip
    made = message(headers={**strange, **HEADERS})
    assert normalize(made) is None
    request = celery_takes(made)
    assert fault_in(made) is None
    assert (request.time_limits, request.root_id, request.parent_id) == ([None, None], "t", None)
    assert not request.revoked()
