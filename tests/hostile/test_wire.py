"""What a message may say of the worker's own affairs: nothing."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.errors import FieldError
from api_contracts.events import Failed
from tests.fuzz.desk import Desk
from tests.fuzz.mail import message
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
def desk() -> Desk:
    """The way of a message through the worker's code."""
    return Desk()


def refusal(desk: Desk, entry: bytes) -> str:
    """What task `t` is told; fails unless it is refused as a message."""
    verdict = desk.take(entry)
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
def test_a_body_does_not_name_the_task(desk: Desk, embedded: dict[str, Any]) -> None:
    """Celery writes what is embedded over its own request, id and all: it is refused instead."""
    (name,) = embedded
    assert name in refusal(desk, sent([[], {"request": GOOD}, embedded]))


@pytest.mark.parametrize(
    "entry",
    [
        b"", b"\xff", b"[" * 100_000, b'{"headers":' * 100_000, b'{"headers": {"id": "t"}', b"5",
        b"9" * 5_000, b"NaN", b'"' + b"\\u0000" * 1_000, b'{"headers": []}', b"\x80\x04N.",
    ],
)  # fmt: skip
def test_what_is_no_message_is_rejected(desk: Desk, entry: bytes) -> None:
    """However it is broken, and however deep: it is dropped, and the next one is read."""
    assert desk.take(entry).kind == "rejected"


@pytest.mark.parametrize("name", ["self", "cls", "__unreadable__", "\ud800", "\x00", "a" * 9000])
def test_no_argument_is_too_odd(desk: Desk, name: str) -> None:
    """A keyword that Python itself uses, or that no reader of JSON takes, is answered."""
    assert len(refusal(desk, sent([[], {"request": GOOD, name: 1}, {}]))) < 600


@pytest.mark.parametrize(
    "value",
    [
        {"__type__": kind, "__value__": text}
        for kind in ("decimal", "uuid", "datetime", "bytes", "base64", "pickle", "x")
        for text in ("1e999999999", "gASVAAAAAAAAAAAu", "2030-01-01", "", "[]")
    ],
)
def test_no_type_is_named(desk: Desk, value: object) -> None:
    """What kombu makes of JSON beyond JSON's own types is no part of a request."""
    for request in (value, {"prompt": value}, {"prompt": "x", "seed": value}):
        verdict = desk.take(sent([[], {"request": request}, {}]))
        assert verdict.kind == "refused"


@pytest.mark.parametrize("header", ["reply_to", "correlation_id", "root_id", "parent_id", "group"])
def test_an_answer_goes_nowhere_else(desk: Desk, header: str) -> None:
    """Whoever the message says is to be told: the task's own record and result are all."""
    for value in ("unacked", "../x", "\ud800", ["x"], {"a": 1}, 5):
        whole = json.loads(sent([[], {"request": GOOD}, {}], **{header: value}))
        whole["properties"][header] = value
        verdict = desk.take(json.dumps(whole).encode())
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
def test_no_place_is_named(desk: Desk, place: dict[str, Any]) -> None:
    """No path, URL or hub id: a model by its alias, an input by a key below the inputs' folder."""
    verdict = desk.take(sent([[], {"request": GOOD | place}, {}]))
    assert isinstance(verdict.event, Failed)
    assert verdict.event.error.code == "invalid_request"


def test_a_stranger_in_the_stream_is_passed_over(
    redis: Redis, client: GenerationClient, namespace: str
) -> None:
    """A producer may write into streams: what is no event ends nobody's watch."""
    task = client.submit({"prompt": "x", "model": namespace}, "watched")
    stream = client.keys.events("watched")
    for seq, fields in enumerate(
        ({"other": "x"}, {"event": "{"}, {"event": "[" * 5000}, {"event": b"\xff"}), start=2
    ):
        redis.xadd(stream, fields, id=f"{seq}-0")  # type: ignore[arg-type]  # redis-py's own
    redis.hset(client.keys.task("watched"), "seq", 5)
    assert task.cancel() == "queued"
    assert [event.type for event in task.events(timeout=5)] == ["queued", "cancelled"]


def test_half_a_surrogate_is_not_handed_on() -> None:
    """A fault can be written by every writer and read by every reader of JSON."""
    fault = FieldError(where="\ud800", what="a\udfffb", limit="\ud800")
    assert (fault.where, fault.what, fault.limit) == ("?", "a?b", "?")


@pytest.mark.parametrize("url", ["http://key:hush@host", "https://hush@host/path"])
def test_an_endpoint_holds_no_key(url: str) -> None:
    """It is logged and told to callers: what is before its host would be, too."""
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID") as refused:
        Settings(s3_endpoint_url=url)
    assert "hush" not in str(refused.value)
