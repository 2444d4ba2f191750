"""Messages can't change what the worker does, reads or answers beside their task."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.errors import FieldError
from api_contracts.events import Failed
from tests.fuzz.hostile_messages import message
from tests.fuzz.pipeline import Pipeline
from worker.config.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts import GenerationClient

GOOD = {"prompt": "x", "num_inference_steps": 5}


def sent(call: object, **headers: Any) -> bytes:
    """A message of task `t` with any call."""
    whole = message("t", base64.b64encode(json.dumps(call).encode()).decode())
    whole["headers"] |= headers
    return json.dumps(whole).encode()


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """A message's way through the worker's code."""
    return Pipeline()


def refusal(pipeline: Pipeline, entry: bytes) -> str:
    """The error of task `t`; fails unless its message is refused."""
    verdict = pipeline.take(entry)
    assert verdict.kind == "refused"
    assert isinstance(verdict.event, Failed)
    assert verdict.event.task_id == "t"
    assert verdict.event.error.code == "invalid_request"
    (fault,) = verdict.event.error.details["faults"]
    assert fault["where"] == "message"
    return str(fault["what"])


@pytest.mark.parametrize(
    "embedded",
    [
        {"id": "../../elsewhere"}, {"id": "}:task"}, {"root_id": "x"}, {"delivery_info": 5},
        {"not_after_s": [1]}, {"reply_to": "unacked"}, {"hostname": "x"}, {"timelimit": 1},
        {"task": "os.system"}, {"args": [1]}, {"kwargs": {}}, {"self": 1}, {"chain": [1]},
    ],
)  # fmt: skip
def test_a_body_does_not_name_the_task(pipeline: Pipeline, embedded: dict[str, Any]) -> None:
    """Fields embedded in the body, which Celery would copy over its request, are refused."""
    (name,) = embedded
    assert name in refusal(pipeline, sent([[], {"request": GOOD}, embedded]))


@pytest.mark.parametrize(
    "entry",
    [
        b"", b"\xff", b"[" * 100_000, b'{"headers":' * 100_000, b'{"headers": {"id": "t"}', b"5",
        b"9" * 5_000, b"NaN", b'"' + b"\\u0000" * 1_000, b'{"headers": []}', b"\x80\x04N.",
    ],
)  # fmt: skip
def test_an_entry_that_is_not_a_message_is_dropped(pipeline: Pipeline, entry: bytes) -> None:
    """An entry that is not a message is dropped, whatever it contains."""
    assert pipeline.take(entry).kind == "rejected"


@pytest.mark.parametrize("name", ["self", "cls", "__unreadable__", "\ud800", "\x00", "a" * 9000])
def test_no_argument_is_too_odd(pipeline: Pipeline, name: str) -> None:
    """A message with any odd argument is answered."""
    assert len(refusal(pipeline, sent([[], {"request": GOOD, name: 1}, {}]))) < 600


@pytest.mark.parametrize(
    "value",
    [
        {"__type__": kind, "__value__": text}
        for kind in ("decimal", "uuid", "datetime", "bytes", "base64", "pickle", "x")
        for text in ("1e999999999", "gASVAAAAAAAAAAAu", "2030-01-01", "", "[]")
    ],
)
def test_no_typed_value_is_accepted(pipeline: Pipeline, value: object) -> None:
    """The types that kombu adds to JSON are not part of a request."""
    for request in (value, {"prompt": value}, {"prompt": "x", "seed": value}):
        verdict = pipeline.take(sent([[], {"request": request}, {}]))
        assert verdict.kind == "refused"


@pytest.mark.parametrize("header", ["reply_to", "correlation_id", "root_id", "parent_id", "group"])
def test_answers_go_nowhere_else(pipeline: Pipeline, header: str) -> None:
    """Answers go to the task's record and result, whatever reply headers a message has."""
    for value in ("unacked", "../x", "\ud800", ["x"], {"a": 1}, 5):
        whole = json.loads(sent([[], {"request": GOOD}, {}], **{header: value}))
        whole["properties"][header] = value
        verdict = pipeline.take(json.dumps(whole).encode())
        assert verdict.kind == "accepted"
        assert verdict.event is not None
        assert verdict.event.task_id == "t"


@pytest.mark.parametrize(
    "place",
    [
        {"model": "../models"}, {"model": "stable-diffusion-v1-5/stable-diffusion-v1-5"},
        {"model": "https://elsewhere.test/m"}, {"model": "default\n"}, {"model": "DEFAULT"},
        {"latents": {"s3": "../outputs/x.safetensors"}}, {"latents": {"s3": "/x.safetensors"}},
        {"latents": {"s3": "s3://other/x.safetensors"}}, {"latents": {"s3": "x.pt"}},
        {"latents": {"s3": "x.safetensors\n"}}, {"latents": {"s3": "a/./x.safetensors"}},
        {"latents": {"s3": "a//x.safetensors"}}, {"latents": {"s3": ".hidden.safetensors"}},
        {"latents": {"url": "http://169.254.169.254/"}}, {"latents": "x.safetensors"},
        {"scheduler": "../x"}, {"scheduler": "DDIMScheduler"}, {"lora": "x.safetensors"},
        {"cross_attention_kwargs": {"processor": "x"}}, {"output_type": "../x"},
    ],
)  # fmt: skip
def test_no_path_is_accepted(pipeline: Pipeline, place: dict[str, Any]) -> None:
    """A request names models by alias and inputs by key; no path, URL or hub id is accepted."""
    verdict = pipeline.take(sent([[], {"request": GOOD | place}, {}]))
    assert isinstance(verdict.event, Failed)
    assert verdict.event.error.code == "invalid_request"


def test_foreign_stream_entries_are_skipped(
    redis: Redis, client: GenerationClient, namespace: str
) -> None:
    """Entries of a stream that are not events do not end a follower."""
    task = client.submit({"prompt": "x", "model": namespace}, "watched")
    stream = client.keys.events("watched")
    for seq, fields in enumerate(
        ({"other": "x"}, {"event": "{"}, {"event": "[" * 5000}, {"event": b"\xff"}), start=2
    ):
        redis.xadd(stream, fields, id=f"{seq}-0")  # type: ignore[arg-type]  # redis-py's own
    redis.hset(client.keys.task("watched"), "seq", 5)
    assert task.cancel() == "queued"
    assert [event.type for event in task.events(timeout=5)] == ["queued", "cancelled"]


def test_lone_surrogates_are_replaced() -> None:
    """Lone surrogates are replaced in a `FieldError`, so that any JSON reader can read it."""
    fault = FieldError(where="\ud800", what="a\udfffb", limit="\ud800")
    assert (fault.where, fault.what, fault.limit) == ("?", "a?b", "?")


@pytest.mark.parametrize("url", ["http://key:hush@host", "https://hush@host/path"])
def test_an_endpoint_has_no_credentials(url: str) -> None:
    """An S3 endpoint with credentials is refused, because it is logged and shown to callers."""
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID") as refused:
        Settings(s3_endpoint_url=url)
    assert "hush" not in str(refused.value)
