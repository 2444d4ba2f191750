"""Examples of everything on the wire, for the published schemas."""

from __future__ import annotations

import base64
import json
from typing import Any

from api_contracts.names import TASK_NAME

_WORKER = "gpu-host:gpu0:5d1a18e7"

REQUESTS: list[dict[str, Any]] = [
    {"prompt": "a large red circle on a white background"},
    {
        "prompt": ["a green ring on a black background", "a large red star on a blue background"],
        "model": "default",
        "seed": [5, 7],
        "num_inference_steps": 25,
        "sag_scale": 1.0,
        "preview_every": 5,
        "deadline_s": 600.0,
        "priority": 3,
        "metadata": {"customer": "18"},
    },
    {
        "prompt": "a large red star on a blue background",
        "image": {"s3": "caller-1/photo.jpg"},
        "mask_image": {"s3": "caller-1/mask.png"},
        "strength": 0.6,
        "sag_stop": 0.8,
    },
    {
        "prompt": "a large red star on a blue background",
        "model": "sd15",
        "loras": [{"name": "ink", "scale": 0.8}, {"name": "chalk"}],
    },
    {"class_labels": [31, 0], "model": "shapes", "seed": [5, 7], "sag_scale": 1.0},
]

RESULT: dict[str, Any] = {
    "images": [
        {
            "key": "outputs/demo-18/0.png",
            "url": "https://s3.example.com/sag/outputs/demo-18/0.png?X-Amz-Signature=…",
            "sha256": "9b2f6f0f3a4e9f6f0c7f7f6c1b8a4d2e5a1c3b7d9e8f0a1b2c3d4e5f60718293",
            "bytes": 5093,
            "width": 64,
            "height": 64,
            "seed": 3878561153,
            "nsfw_content_detected": None,
        }
    ],
    "manifest_key": "outputs/demo-18/manifest.json",
    "timings": {
        "queued_s": 0.0161,
        "load_s": 0.0,
        "encode_s": 0.0042,
        "denoise_s": 1.2087,
        "decode_s": 0.0203,
        "upload_s": 0.0311,
        "total_s": 1.2849,
    },
    "batch": 3.5,
    "model": "default",
    "scheduler": "ddim",
    "parameters": {"prompt": "a green ring on a black background", "num_inference_steps": 25},
    "truncated": [],
    "versions": {"torch": "2.13.0", "diffusers": "0.42.1", "transformers": "5.23.0"},
    "dtype": "float32",
}

ERROR: dict[str, Any] = {
    "code": "invalid_request",
    "message": "the request is refused: nope: Extra inputs are not permitted (got 1)",
    "retryable": False,
    "details": {
        "faults": [
            {
                "where": "nope",
                "what": "Extra inputs are not permitted (got 1)",
                "limit": "extra_forbidden",
            }
        ]
    },
}


def _event(seq: int, attempt: int, kind: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  # any JSON
    at = f"2026-11-23T00:08:{18 + seq:02}.552Z"
    whole = {"seq": seq, "attempt": attempt, "task_id": "demo-18", "at": at, "type": kind}
    worker = {"worker": _WORKER} if attempt else {}
    return whole | worker | fields | {"metadata": {"customer": "18"}}


EVENTS: dict[str, dict[str, Any]] = {
    "queued": _event(1, 0, "queued", queue="generate.default", position=2),
    "started": _event(2, 1, "started", model="default", device="cuda:0", resumed_from_step=None),
    "loading": _event(3, 1, "loading", seconds_so_far=1.002),
    "progress": _event(4, 1, "progress", step=7, total_steps=25, eta_s=0.871, preview=None),
    "uploading": _event(5, 1, "uploading", images=1),
    "requeued": _event(6, 1, "requeued", reason="worker drained at step 7"),
    "succeeded": _event(7, 2, "succeeded", result=RESULT),
    "failed": _event(7, 1, "failed", error=ERROR),
    "cancelled": _event(7, 1, "cancelled", step=7),
    "expired": _event(7, 1, "expired", step=7),
}


def _message(
    task: str, task_id: str, tag: str, queue: str, priority: int, **kwargs: dict[str, Any]
) -> dict[str, Any]:
    return {
        "body": base64.b64encode(json.dumps([[], kwargs, {}]).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": task, "id": task_id},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": task_id,
            "delivery_tag": tag,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
        },
    }


MESSAGE: dict[str, Any] = _message(
    TASK_NAME, "raw-1", "5f59d2b1-abfe-4e54-87a6-8b33f6462ccc", "generate.default", 5,
    request=REQUESTS[0],
)  # fmt: skip
REPLY: dict[str, Any] = _message(
    "shop.picture_done", "demo-18:7", "0c1d9a5e-8d0f-4f0e-9d6e-0a8c1f3f6b52", "shop", 0,
    event=EVENTS["succeeded"],
)  # fmt: skip
