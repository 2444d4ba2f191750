"""Messages on their way in: each is handled, answered, or turned away with a reason."""

from __future__ import annotations

import json
import pickle

import pytest
from kombu import Connection

from api_contracts import GenerationClient, names
from tests.record.mail import HEADERS, celery_takes, fault_in, message
from worker.broker.validate_message import NOT_AFTER, normalize


def test_a_good_message_passes(client: GenerationClient, redis_url: str, namespace: str) -> None:
    """What our client sends goes to Celery with its body untouched."""
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
def test_one_that_nobody_can_answer_has_a_reason(headers: object) -> None:
    """Without our task's name and a task id there is nobody to tell; the log gets the reason."""
    reason = normalize(message(headers=headers))
    assert reason is not None
    assert len(reason) < 500


@pytest.mark.parametrize("name", ["task", "id", "expires"])
def test_what_is_nested_too_deep_has_a_reason_too(name: str) -> None:
    """What can be read may be too deep to be shown."""
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
def test_a_broken_body_is_answered(body: object) -> None:
    """A body that is not `[args, kwargs, embed]` becomes a call that says so."""
    made = message(body)
    assert normalize(made) is None
    assert fault_in(made)


@pytest.mark.parametrize("kind", ["application/x-python-serialize", "text/plain", None, 5, [], {}])
def test_only_json_is_read(kind: object) -> None:
    """Pickle, YAML and whatever else is not read, and the caller is told."""
    made = message(pickle.dumps([[], {"request": {}}, {}]), content_type=kind)
    assert normalize(made) is None
    assert fault_in(made)


@pytest.mark.parametrize("encoding", [5, ["utf-8"], {}, "no-such-encoding", "\ud800"])
def test_an_odd_encoding_ends_nothing(encoding: object) -> None:
    """Whatever is said of the encoding, the message is handled or answered."""
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
def test_times_that_are_not_served_are_answered(header: dict[str, object]) -> None:
    """A task for later is refused, and an expiry that is no time."""
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
def test_an_expiry_is_kept_from_celery(expires: str | None, at_s: float | None) -> None:
    """Celery would end an expired task without a word to its record: the task gets the time."""
    made = message(headers={**HEADERS, "expires": expires})
    assert normalize(made) is None
    assert fault_in(made) is None
    assert made.headers[NOT_AFTER] == at_s
    request = celery_takes(made)
    assert request.expires is None
    assert not request.revoked()


@pytest.mark.parametrize("name", ["callbacks", "errbacks", "chain", "chord"])
@pytest.mark.parametrize("value", [5, [5], [{"task": "notify.me"}], {"task": "x", "args": []}])
def test_what_celery_would_do_afterwards_is_refused(name: str, value: object) -> None:
    """A follow-up is refused by name: one that fails would hold up its slot for ever."""
    made = message(json.dumps([[], {"request": {}}, {name: value}]))
    assert normalize(made) is None
    assert name in (fault_in(made) or "")


def test_protocol_1_is_answered() -> None:
    """A message of Celery's first protocol, which has its id in the body, is told so."""
    body = {"task": names.TASK_NAME, "id": "t", "args": [], "kwargs": {"request": {}}}
    made = message(json.dumps(body), headers={})
    assert normalize(made) is None
    assert "protocol" in (fault_in(made) or "")
    assert celery_takes(made).id == "t"


def test_headers_are_what_celery_takes_for_granted() -> None:
    """Retries, time limits and other headers of a stranger mean nothing here."""
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
