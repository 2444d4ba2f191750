"""Validation holds for every message that a producer could send."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.record.mail import BODY, HEADERS, celery_takes, message
from worker.broker.validate_message import normalize

if TYPE_CHECKING:
    from kombu.message import Message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["task", "id", "eta", "expires", "retries", "timelimit", "group", "root_id", "lang", "args"]
)
ANY_HEADERS = JSON | st.dictionaries(NAMES, JSON, max_size=6).map(lambda some: {**HEADERS, **some})
ANY_BODY = (
    JSON.map(json.dumps)
    | st.tuples(JSON, JSON, JSON).map(json.dumps)
    | st.text()
    | st.binary()
    | JSON
)
ANY_KIND = st.just("application/json") | JSON


ANY_ENCODING = st.just("utf-8") | JSON


def check(made: Message) -> None:
    """Fail unless a message is dropped with a reason or can be handled by Celery."""
    reason = normalize(made)
    if reason is None:
        celery_takes(made)
    else:
        assert len(reason) < 500


@settings(max_examples=50, deadline=None, derandomize=True)
@given(body=ANY_BODY, headers=ANY_HEADERS, kind=ANY_KIND, encoding=ANY_ENCODING)
@example(body=BODY, headers=HEADERS, kind="application/json", encoding=5)
def test_no_message_is_too_odd(
    body: object, headers: object, kind: object, encoding: object
) -> None:
    """Validation raises nothing for any message, and Celery can handle what it accepts."""
    check(message(body, headers, kind, encoding))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(body=ANY_BODY, headers=ANY_HEADERS, kind=ANY_KIND, encoding=ANY_ENCODING)
def test_none_of_many_messages_is_too_odd(
    body: object, headers: object, kind: object, encoding: object
) -> None:
    """The same for more messages, drawn anew each time."""
    check(message(body, headers, kind, encoding))
