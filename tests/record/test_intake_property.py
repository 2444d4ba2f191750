"""What holds for every message that anybody could send."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.record.mail import BODY, HEADERS, celery_takes, message
from worker.broker.validate_message import normalize

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


@settings(max_examples=150, deadline=None, derandomize=True)
@given(body=ANY_BODY, headers=ANY_HEADERS, kind=ANY_KIND, encoding=st.just("utf-8") | JSON)
@example(body=BODY, headers=HEADERS, kind="application/json", encoding=5)
def test_no_message_is_too_odd(
    body: object, headers: object, kind: object, encoding: object
) -> None:
    """Whatever comes, putting it in order raises nothing, and Celery can take what it lets pass."""
    made = message(body, headers, kind, encoding)
    reason = normalize(made)
    if reason is None:
        celery_takes(made)
    else:
        assert len(reason) < 500
