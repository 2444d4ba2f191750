"""Events on the wire, and errors in Celery's result backend."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from pydantic import ValidationError

from api_contracts import GenerationFailed, TaskError, TaskStatus
from api_contracts.errors import ErrorCode, GenerationExpired
from api_contracts.events import EVENT
from tests.record.owners import ERROR, PROGRESS, RESULT, TERMINAL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMON = {"task_id": "t", "seq": 1, "attempt": 1, "at": "2030-01-02T03:04:05.678Z"}
FIELDS: dict[str, dict[str, Any]] = {
    "queued": {"queue": "generate.default", "position": None},
    "started": {"model": "default", "device": "cpu", "resumed_from_step": None},
    "loading": {"seconds_so_far": 0.1},
    "progress": PROGRESS,
    "uploading": {"images": 1},
    "requeued": {"reason": "r"},
    "succeeded": {"result": RESULT},
    "failed": {"error": ERROR},
    "cancelled": {"step": 3},
    "expired": {"step": 0},
}


@pytest.mark.parametrize("kind", FIELDS)
def test_each_type_parses(kind: str) -> None:
    """Each event type parses, with a field of a newer version too; `is_terminal` is right."""
    wire = {**COMMON, "type": kind, **FIELDS[kind], "of_a_later_version": 1}
    event = EVENT.validate_json(json.dumps(wire))
    assert event.type == kind
    assert event.at.utcoffset() is not None
    assert event.is_terminal == (kind in TERMINAL)


def test_an_unknown_type_is_an_error_here() -> None:
    """An unknown event type does not validate; the client skips it."""
    with pytest.raises(ValidationError):
        EVENT.validate_python({**COMMON, "type": "dreaming"})


def test_terminal_states() -> None:
    """The four terminal statuses are the four terminal events."""
    assert {status.value for status in TaskStatus if status.is_terminal} == TERMINAL


@pytest.fixture
def celery_app(redis_url: str) -> Iterator[Celery]:
    """Another Celery application over our Redis."""
    app = Celery("other", broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.update(result_serializer="json", accept_content=["json"])
    yield app
    app.close()


@pytest.mark.parametrize("kind", [GenerationFailed, GenerationExpired])
def test_an_error_survives_the_result_backend(
    celery_app: Celery, namespace: str, kind: type[GenerationFailed]
) -> None:
    """`AsyncResult.get()` raises the error that the task raised: same class, same fields."""
    error = TaskError(
        code=ErrorCode.OUT_OF_MEMORY, message="too big: \u00e4", retryable=True, details={"a": [1]}
    )
    raised = kind(str(error.code), error.message, error.retryable, error.details)
    celery_app.backend.mark_as_failure(namespace, raised)
    with pytest.raises(kind) as caught:
        celery_app.AsyncResult(namespace).get(timeout=5)
    assert type(caught.value) is kind
    assert caught.value.error == error
    assert str(caught.value) == "out_of_memory: too big: \u00e4"


FOREIGN = """
import sys
from celery import Celery
app = Celery("other", broker=sys.argv[1], backend=sys.argv[1])
try:
    app.AsyncResult(sys.argv[2]).get(timeout=5)
except Exception as error:
    print(type(error).__name__, error.args)
assert "api_contracts" not in sys.modules
"""


def test_an_error_reaches_one_without_our_package(
    celery_app: Celery, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """A caller without this package gets an exception of the same name and fields."""
    raised = GenerationFailed("internal", "what to do", True, {"k": 1})
    celery_app.backend.mark_as_failure(namespace, raised)
    command = [sys.executable, "-c", FOREIGN, redis_url, namespace]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    expected = str(("internal", "what to do", True, {"k": 1}))
    assert done.stdout.strip() == f"GenerationFailed {expected}"


def test_an_error_is_the_same_both_ways() -> None:
    """`TaskError` to exception and back loses nothing."""
    error = TaskError(code=ErrorCode.INTERNAL, message="m", retryable=False, details={"k": 1})
    assert GenerationFailed.of(error).error == error
    assert GenerationFailed("internal", "m").error.details == {}
