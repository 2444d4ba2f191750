"""Hostile entries for a queue's list, each a function of a seed and its number."""

from __future__ import annotations

import base64
import bz2
import copy
import gzip
import json
import pickle
import random
import zlib
from typing import TYPE_CHECKING, Any

from api_contracts.names import TASK_NAME
from tests.fuzz import odd_values

if TYPE_CHECKING:
    from collections.abc import Callable

#: Requests that are mutated. A worker of these tests refuses all of them, unless a mutation happens
#: to make one valid: hardly any reaches the device.
REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": "a red circle", "num_inference_steps": 9_000},
    {"prompt": ["a", "b"], "negative_prompt": ["c"], "seed": [1, 2]},
    {"prompt": "a", "model": "absent", "metadata": {"customer": "18", "\u00e4": "\u20ac"}},
    {"prompt": "a", "latents": {"s3": "x/y.safetensors"}, "num_images_per_prompt": 64},
    {"prompt_embeds": {"s3": "e.safetensors"}, "prompt": "both"},
    {"prompt": "a", "height": 4096, "width": 64, "eta": 0.5, "scheduler": "euler"},
    {"prompt": "a", "image": {"s3": "x/y.png"}, "strength": 0.5, "num_inference_steps": 9_000},
    {"prompt": "a", "mask_image": {"s3": "x/y.png"}, "sag_start": 0.9, "sag_stop": 0.1},
    {"prompt": "a", "prompt_2": ["b", "c"], "target_size": [64, 64], "guidance_rescale": 0.5},
    {"prompt": "a", "cross_attention_kwargs": {"scale": 0.5}, "deadline_s": 1e-9},
    {"prompt": "a", "priority": 9, "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"},
)
_IDS: tuple[Any, ...] = (
    "../../etc/passwd", "..", ".", "", "a" * 129, "a\n", "\x00", "a/b", "{a}", "a}:task", "*",
    "\ud800", None, 5, True, [], ["a"], {"x": 1}, "a:b", "\u0430",
)  # fmt: skip


def entry(seed: int, number: int, task_id: str) -> bytes:
    """Entry `number`; `task_id` is its id unless that is mutated."""
    rng = random.Random(seed * 2**32 + number)
    request: Any = copy.deepcopy(rng.choice(REQUESTS))
    if rng.random() < 0.5:
        request = odd_values.mutate(rng, request, rng.choice((1, 1, 1, 2, 5)))
    call: Any = [[], {"request": request}, {"callbacks": None, "chord": None}]
    if rng.random() < 0.2:
        call = odd_values.mutate(rng, call)
    whole = message(task_id, _encoded_body(rng, _body_bytes(rng, call, task_id)))
    if rng.random() < 0.4:
        whole = _with_odd_parts(rng, whole)
    raw = json.dumps(whole).encode()
    return _corrupted(rng, raw) if rng.random() < 0.1 else raw


def message(task_id: Any, body: Any) -> dict[str, Any]:
    """A message as Celery writes it."""
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": TASK_NAME, "id": task_id, "root_id": task_id},
        "properties": {
            "correlation_id": task_id,
            "reply_to": "00000000-0000-0000-0000-000000000000",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "generate.default"},
            "priority": 5,
            "body_encoding": "base64",
            "delivery_tag": task_id,
        },
    }


def calls(request: Any) -> str:
    """The body of a call, encoded as Celery does."""
    return base64.b64encode(json.dumps([[], {"request": request}, {}]).encode()).decode()


def _body_bytes(rng: random.Random, call: Any, task_id: str) -> bytes:
    """The call as bytes, mostly JSON."""
    text = json.dumps(call)
    kinds: list[Callable[[], bytes]] = [
        lambda: text.replace('"prompt"', '"prompt": 5, "prompt"').encode(),
        lambda: json.dumps({"task": TASK_NAME, "id": task_id, "args": [], "kwargs": {}}).encode(),
        lambda: text.encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: pickle.dumps(call),
        lambda: gzip.compress(text.encode(), 1),
        lambda: zlib.compress(b"[" * 100_000),
        lambda: bz2.compress(b" " * 100_000),
        lambda: b"[" * rng.choice((10, 900, 20_000)),
        lambda: b'{"a":' * rng.choice((10, 900, 20_000)),
        lambda: text.replace("9000", "9" * rng.choice((10, 4_000, 5_000))).encode(),
        lambda: text.replace('"a red circle"', "1e" + "9" * rng.randrange(1, 9)).encode(),
        lambda: rng.randbytes(rng.randrange(64)),
        lambda: _corrupted(rng, text.encode()),
    ]
    return rng.choice(kinds)() if rng.random() < 0.25 else text.encode()


def _encoded_body(rng: random.Random, body: bytes) -> Any:
    """The body as it stands in a message, mostly base64."""
    packed = base64.b64encode(body).decode()
    kinds: list[Callable[[], Any]] = [
        lambda: packed[: rng.randrange(len(packed) + 1)],
        lambda: packed.replace("A", rng.choice(("%", "\n", "\u00e4", "=", "-")), 3),
        lambda: packed + "=" * rng.randrange(4),
        lambda: body.decode("latin-1"),
        lambda: list(body[:40]),
        lambda: odd_values.value(rng),
    ]
    return rng.choice(kinds)() if rng.random() < 0.08 else packed


def _with_odd_parts(rng: random.Random, whole: dict[str, Any]) -> Any:
    """Odd values in headers, properties or types."""
    headers, properties = whole["headers"], whole["properties"]
    match rng.randrange(8):
        case 0:
            headers["id"] = rng.choice(_IDS)
        case 1:
            headers |= {rng.choice(odd_values.NAMES): odd_values.value(rng) for _ in range(3)}
        case 2:
            properties |= {rng.choice(odd_values.NAMES): odd_values.value(rng) for _ in range(3)}
        case 3:
            whole["properties"] = odd_values.mutate(rng, properties)
        case 4:
            whole["headers"] = odd_values.mutate(rng, headers)
        case 5:
            whole[rng.choice(("content-type", "content-encoding", "headers"))] = odd_values.value(
                rng
            )
        case 6:
            return odd_values.mutate(rng, whole)
        case _:
            headers["compression"] = rng.choice(odd_values.TEXTS)
    return whole


def _corrupted(rng: random.Random, raw: bytes) -> bytes:
    """The entry with bytes flipped, cut off, inserted or repeated."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                del data[place:]
            case 1:
                data[place:place] = rng.randbytes(rng.randrange(1, 5))
            case 2:
                data[place:place] = data[place : place + rng.randrange(1, 60)]
            case _ if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
    return bytes(data)
