"""Malformed messages do not stop a worker."""

from __future__ import annotations

import base64
import json
import pickle
import random
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from api_contracts.names import MAX_MESSAGE_BYTES, is_task_id
from tests.service.conftest import END_S, check_events, wait_until
from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Service

GOOD = {"prompt": "a red circle", "num_inference_steps": 1}
PICKLE = "application/x-python-serialize"
#: The id in messages that exceed the size limit: it is never read.
TOO_LARGE = "bad-and-too-large"
LARGE_EVERY = 60


def message(task_id: Any, body: bytes, **changes: Any) -> dict[str, Any]:
    """A message as Celery puts it into Redis, with `changes` to its parts."""
    whole: dict[str, Any] = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "sag.generate", "id": task_id},
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "generate.default"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return whole | changes


def with_properties(task_id: str, body: bytes, **properties: Any) -> dict[str, Any]:
    """A message with changed `properties`."""
    made = message(task_id, body)
    return made | {"properties": made["properties"] | properties}


def body_of(request: Any, **kwargs: Any) -> bytes:
    """The body of a call, as Celery's protocol 2 has it."""
    return json.dumps([[], {"request": request, **kwargs}, {}]).encode()


def answerable(task_id: str, rng: random.Random) -> dict[str, Any]:
    """A message with a good id and something wrong around or in its request."""
    headers = {"lang": "py", "task": "sag.generate", "id": task_id}
    deep = b"[" * 100_000
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: message(task_id, b"not json"),
        lambda: message(task_id, b"\xff\xfe\x00"),
        lambda: message(task_id, b""),
        lambda: message(task_id, deep),
        lambda: message(task_id, b"{}"),
        lambda: message(task_id, b"[[], {}]"),
        lambda: message(task_id, b'[[], {"request": NaN}, {}]'),
        lambda: message(task_id, b'[[], {"request": {"prompt": "a", "guidance_scale": NaN}}, {}]'),
        lambda: message(task_id, b'[[], {"request": {"prompt": "\\ud800"}}, {}]'),
        lambda: message(task_id, body_of(None)),
        lambda: message(task_id, body_of("text")),
        lambda: message(task_id, body_of({})),
        lambda: message(task_id, body_of({"prompt": 5})),
        lambda: message(task_id, body_of(GOOD | {"height": "64"})),
        lambda: message(task_id, body_of(GOOD | {"unknown": 1})),
        lambda: message(task_id, body_of(GOOD | {"model": "../../etc/passwd"})),
        lambda: message(task_id, body_of(GOOD | {"latents": {"s3": "../../secret.safetensors"}})),
        lambda: message(task_id, body_of(GOOD | {"seed": 2**70})),
        lambda: message(task_id, body_of(GOOD | {"metadata": {"a": "x" * 5000}})),
        lambda: message(task_id, body_of(GOOD, extra=1)),
        lambda: message(task_id, json.dumps([[GOOD], {}, {}]).encode()),
        lambda: message(task_id, body_of(GOOD), **{"content-type": "application/x-yaml"}),
        lambda: message(task_id, pickle.dumps(GOOD), **{"content-type": PICKLE}),
        lambda: message(task_id, body_of(GOOD), headers=headers | {"compression": "zstd-9"}),
        lambda: message(task_id, body_of(GOOD), headers=headers | {"compression": "gzip"}),
        lambda: message(task_id, body_of(GOOD)) | {"body": 5},
        lambda: message(task_id, body_of(GOOD)) | {"body": "%%%"},
        lambda: with_properties(task_id, body_of({}), delivery_tag=None),
        lambda: with_properties(task_id, body_of({}), delivery_tag=["x"]),
        lambda: with_properties(task_id, body_of({}), delivery_info=None),
        lambda: with_properties(task_id, body_of(GOOD), body_encoding="zip"),
        lambda: message(task_id, body_of(GOOD), properties={}),
        lambda: message(task_id, json.dumps([[], {"request": GOOD}, {"chain": [1]}]).encode()),
        lambda: message(task_id, body_of(GOOD), headers=headers | {"eta": "2099-01-01T00:00:00"}),
        lambda: message(task_id, body_of(GOOD), headers=headers | {"expires": [1]}),
        lambda: message(task_id, body_of({}), headers=headers | {"timelimit": "x", "retries": {}}),
    ]  # fmt: skip
    return rng.choice(kinds)()


def unanswerable(rng: random.Random) -> bytes:
    """An entry that is no message, or one without an id that could be answered."""
    ids: list[Any] = ["../../etc/passwd", "..", "", "a" * 200, "a\n", None, 5, [], {"x": 1}, "a/b"]
    some = message(rng.choice(ids), body_of(GOOD))
    broken = message("x", body_of(GOOD))
    kinds: list[Callable[[], Any]] = [
        lambda: some,
        lambda: broken | {"headers": None},
        lambda: broken | {"headers": {"task": ["list"], "id": "x"}},
        lambda: broken | {"headers": {"task": "os.system", "id": "x"}},
        lambda: {key: value for key, value in broken.items() if key != "headers"},
        lambda: 17,
        list,
        lambda: "text",
        lambda: None,
    ]
    made = rng.choice(kinds)()
    return rng.choice([b"garbage", b"{", b"\x00\xff", json.dumps(made).encode()])


def hostile(rng: random.Random, ids: list[str]) -> Iterator[bytes]:
    """Messages that can be answered, one for each id, and others that can't.

    Of `LARGE_EVERY` that can, one has 7 MB and is followed by one of 10 MB.
    """
    for number, task_id in enumerate(ids):
        if number % LARGE_EVERY == 0:
            yield json.dumps(message(task_id, body_of({"prompt": "x" * 5_000_000}))).encode()
            too_long = {"prompt": "x" * (MAX_MESSAGE_BYTES * 3 // 4)}  # more in base64
            yield json.dumps(message(TOO_LARGE, body_of(too_long))).encode()
        else:
            yield json.dumps(answerable(task_id, rng)).encode()
        if number % 3 != 0:
            yield unanswerable(rng)


@pytest.mark.parametrize("answerable_count", [40, pytest.param(120, marks=pytest.mark.slow)])
def test_malformed_messages_leave_the_worker_serving(
    service: Service, stored: Callable[[str], dict[str, bytes]], answerable_count: int
) -> None:
    """A malformed message ends as `failed` if it can be answered, and the next task is served."""
    rng = random.Random(200)
    ids = [f"bad-{uuid.uuid4().hex}" for _ in range(answerable_count)]
    assert all(map(is_task_id, ids))
    before = set(stored(""))
    with Redis.from_url(service.broker_url) as redis:
        for entry in hostile(rng, ids):
            redis.lpush("generate.default", entry)
        good = service.client.submit(GOOD)
        assert good.result(END_S).images
        for task_id in ids:
            events = list(service.client.handle(task_id).events(timeout=END_S))
            check_events(events)
            assert events[-1].type == "failed", task_id
            assert events[-1].error.code == "invalid_request", task_id
            assert len(events[-1].model_dump_json()) < 20_000
            assert redis.memory_usage(service.client.keys.task(task_id)) < 100_000
        assert service.client.status_many([TOO_LARGE]) == {TOO_LARGE: None}
        wait_until(lambda: redis.hlen(UNACKED) == 0)
    new = set(stored("")) - before
    assert {key.rsplit("/", 1)[0] for key in new} == {f"{service.prefix}/{good.task_id}"}
    assert service.process.poll() is None
