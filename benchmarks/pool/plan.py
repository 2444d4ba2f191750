"""What is simulated: the workers of one process, their tasks, and what a task is made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from api_contracts.names import DEFAULT_MODEL, DEFAULT_PRIORITY, Keys, queue_name
from api_contracts.result import GenerationResult, ImageResult, Timings

NAMESPACE = "pool"
KEYS = Keys(NAMESPACE)
QUEUE = queue_name(DEFAULT_MODEL)
#: Ids that begin so are timed: when they are claimed, and when their cancel is known.
TIMED = "timed-"
#: A task of everybody.
REQUEST: dict[str, Any] = {
    "prompt": "a photograph of an astronaut riding a horse on the moon, highly detailed, 35 mm",
    "negative_prompt": "blurry, low quality, watermark, text, extra limbs",
    "num_inference_steps": 25,
    "guidance_scale": 7.5,
    "sag_scale": 0.75,
    "height": 512,
    "width": 512,
    "scheduler": "dpmpp_2m",
    "seed": 1234567890,
    "priority": DEFAULT_PRIORITY,
}


@dataclass(frozen=True)
class Plan:
    """The workers of one process."""

    url: str
    #: Number of the first one, and how many.
    first: int
    workers: int
    slots: int
    steps: int
    #: Of one worker with all slots in use, in pictures a second.
    pace: float
    checkpoint_every: int
    checkpoint_bytes: int
    lease_s: float

    @property
    def round_s(self) -> float:
        """Time between two rounds of a worker; each advances all of its tasks by a step."""
        return self.slots / (self.pace * self.steps)


def result(task_id: str) -> GenerationResult:
    """What a task ends with: one picture, about as long as a real result."""
    key = f"outputs/{task_id}/0.png"
    signature = "X-Amz-Signature=" + hashlib.sha256(key.encode()).hexdigest()
    credential = "X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20261130%2Fus-east-1%2Fs3%2Faws4_request"
    options = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&{credential}&X-Amz-Expires=3600&{signature}"
    return GenerationResult(
        images=[
            ImageResult(
                key=key,
                url=f"https://pictures.s3.us-east-1.amazonaws.com/{key}?{options}",
                sha256=hashlib.sha256(task_id.encode()).hexdigest(),
                bytes=412_345,
                width=512,
                height=512,
                seed=REQUEST["seed"],
                nsfw_content_detected=False,
            )
        ],
        manifest_key=f"outputs/{task_id}/manifest.json",
        timings=Timings(
            queued_s=1.2345, load_s=0.0, encode_s=0.0123, denoise_s=2.3456, decode_s=0.0456,
            upload_s=0.0789, total_s=3.7169,
        ),
        batch=15.87,
        model=DEFAULT_MODEL,
        scheduler="dpmpp_2m",
        parameters=REQUEST,
        versions={"sag-worker": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.0"},
        dtype="float16",
    )  # fmt: skip
