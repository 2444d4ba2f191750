"""The largest message that is accepted, and larger ones."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection

from api_contracts import GenerationClient, names
from api_contracts.names import MAX_MESSAGE_BYTES
from api_contracts.parse import parse_request
from api_contracts.redis_io.address import RedisAddress
from api_contracts.request_types import MAX_METADATA_BYTES, MAX_PROMPT_CHARS
from tests.fuzz.campaign import resident_mib
from tests.fuzz.hostile_messages import calls, message
from worker.broker.held_messages import UNACKED
from worker.broker.validate_message import normalize
from worker.metrics import REJECTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu.message import Message
    from redis import Redis

#: The character that takes most bytes as JSON: two escapes.
WIDE = "\U0001f680"


class Taker:
    """The worker's transport on the lists of one model."""

    def __init__(self, url: str, model: str) -> None:
        self.got: list[Message] = []
        address = RedisAddress.parse(url)
        self.connection = Connection(
            address.url,
            transport="worker.broker.transport:Transport",
            transport_options=names.TRANSPORT_OPTIONS | {"address": address},
        )
        self.channel = self.connection.channel()
        self.channel.basic_consume(
            names.queue_name(model), no_ack=False, callback=self.got.append, consumer_tag="c"
        )

    def take(self) -> None:
        """Take one message; a dropped one gives no event."""
        self.connection.drain_events(timeout=10)


@pytest.fixture
def taker(redis_url: str, namespace: str) -> Iterator[Taker]:
    """A transport on a queue of the test's own."""
    made = Taker(redis_url, namespace)
    yield made
    for each in made.got:
        each.ack()
    made.connection.close()


def too_large() -> float:
    """The counter of dropped messages."""
    return float(REJECTED.labels("too_large")._value.get())


def largest(model: str) -> dict[str, Any]:
    """The request with the longest JSON that the contract allows."""
    room = MAX_METADATA_BYTES - len(json.dumps({"": ""}))
    prompts = [WIDE * MAX_PROMPT_CHARS] * 64
    return {
        "schema_version": 1, "model": model, "prompt": prompts, "negative_prompt": prompts,
        "prompt_2": prompts, "negative_prompt_2": prompts,
        "height": 16_384, "width": 16_384, "num_inference_steps": 10_000, "guidance_scale": 4 / 3,
        "sag_scale": 1 / 3, "sag_blur_sigma": 1 / 3, "sag_mask_threshold": 1 / 3,
        "sag_start": 1 / 3, "sag_stop": 2 / 3, "guidance_rescale": 1 / 3,
        "original_size": [16_384] * 2, "crops_coords_top_left": [16_384] * 2,
        "target_size": [16_384] * 2,
        "num_images_per_prompt": 1, "eta": 0.0, "seed": [2**63 - 1] * 64,
        "image": {"s3": "a" * 507 + ".webp"}, "mask_image": {"s3": "a" * 507 + ".jpeg"},
        "strength": 1 / 3, "scheduler": "a" * 32, "clip_skip": 32,
        "cross_attention_kwargs": {"scale": 1 / 3},
        "loras": [{"name": f"{number}{'a' * 63}", "scale": -4 / 3} for number in range(8)],
        "output_type": "latent", "priority": 9,
        "callback_steps": 10_000, "preview_every": 10_000, "deadline_s": 1e308 / 3,
        "metadata": {"": WIDE * (room // 4)}, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }  # fmt: skip


def test_the_largest_request_is_within_half_the_limit(
    redis: Redis, redis_url: str, namespace: str, taker: Taker
) -> None:
    """The longest message is at most half of the limit, by the client and by plain Celery."""
    request = largest(namespace)
    assert parse_request(request).to_wire() == request
    with GenerationClient(redis_url, namespace) as client:
        client.submit(request, "largest")
    (entry,) = redis.lrange(names.queue_list(names.queue_name(namespace), 9), 0, -1)
    in_base64 = base64.b64encode(json.dumps([[], {"request": request}, {}]).encode())
    assert len(entry) < MAX_MESSAGE_BYTES / 2.1 < len(in_base64) < MAX_MESSAGE_BYTES / 2
    taker.take()
    (got,) = taker.got
    assert normalize(got) is None
    assert json.loads(json.loads(entry)["body"]) == json.loads(got.body)
    assert json.loads(got.body)[1]["request"] == request


def test_one_byte_more_is_dropped_and_counted(redis: Redis, namespace: str, taker: Taker) -> None:
    """A message at the limit is accepted; one byte more is dropped without a trace in Redis."""
    whole = json.dumps(message("t", calls({"prompt": "x"}))).encode()
    before = too_large()
    for extra in (0, 1):
        redis.lpush(names.queue_name(namespace), whole.ljust(MAX_MESSAGE_BYTES + extra))
        taker.take()
    assert len(taker.got) == 1
    assert too_large() == before + 1
    assert redis.llen(names.queue_name(namespace)) == 0
    held: Any = redis.hkeys(UNACKED)
    tag = str(taker.got[0].delivery_tag).encode()
    assert [each for each in held if each.startswith(b"unnamed/")] == [tag]


def test_dropped_messages_take_no_memory(redis: Redis, namespace: str, taker: Taker) -> None:
    """Messages above the limit are dropped inside Redis and take no memory of the worker."""
    entry = b"[" * (2 * MAX_MESSAGE_BYTES)
    before = too_large()
    Path("/proc/self/clear_refs").write_text("5")  # from now on the peak counts
    resident = resident_mib()
    for _ in range(4):
        redis.lpush(names.queue_name(namespace), entry)
        taker.take()
    assert too_large() == before + 4
    assert not taker.got
    (peak,) = [
        int(line.split()[1]) / 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    assert peak - resident < 5 * MAX_MESSAGE_BYTES / 2**20  # this test's own, as it sends
