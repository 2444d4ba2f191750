"""Pictures that callers upload, through a whole worker."""

from __future__ import annotations

import io
import json
import urllib.request
from typing import TYPE_CHECKING, Any

import boto3
import numpy as np
import pytest
from PIL import Image, ImageDraw

from api_contracts import GenerationFailed
from tests.conftest import BUCKET
from tests.pictures import animated, encoded, photo, png
from tests.service.conftest import END_S, PROMPT

if TYPE_CHECKING:
    from collections.abc import Callable

    from api_contracts import GenerationResult
    from tests.conftest import Service

#: What the bundled model draws. Its sides are no multiples of 8: 72 x 80 pixels are made of it.
PICTURE = Image.new("RGB", (83, 75), "white")
ImageDraw.Draw(PICTURE).ellipse((12, 10, 62, 60), "green")
REQUEST = {
    "prompt": PROMPT, "num_inference_steps": 10, "seed": 3, "image": {"s3": "photo.png"}
}  # fmt: skip


@pytest.fixture(scope="module")
def upload(service: Service) -> Callable[[str, bytes], None]:
    """Puts an object into the worker's input prefix."""
    client = boto3.client("s3", endpoint_url=service.environment["SAG_S3_ENDPOINT_URL"])
    prefix = service.environment["SAG_S3_INPUT_PREFIX"]

    def put(key: str, data: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=data)

    return put


def download(result: GenerationResult) -> Image.Image:
    data = urllib.request.urlopen(str(result.images[0].url), timeout=30).read()
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def apart(one: Image.Image, other: Image.Image) -> np.ndarray[Any, Any]:
    """Absolute difference of each pixel, (height, width)."""
    first, second = (np.asarray(each.convert("RGB"), np.float32) for each in (one, other))
    return np.asarray(abs(first - second).mean(-1))


def test_a_picture_is_made_from_a_picture(
    service: Service, upload: Callable[[str, bytes], None]
) -> None:
    """A picture made from a picture is nearer to it with less strength; its steps are reported."""
    upload("photo.png", encoded(PICTURE, "PNG"))
    source, far = PICTURE.resize((80, 72), Image.Resampling.LANCZOS), {}
    for strength, steps in ((0.1, 1), (0.5, 5), (1.0, 10)):
        task = service.client.submit(REQUEST | {"strength": strength})
        told = [event for event in task.events(timeout=END_S) if event.type == "progress"]
        assert [(event.step, event.total_steps) for event in told][-1] == (steps, steps)
        result = task.result(END_S)
        used = result.parameters
        assert (used["height"], used["width"]) == (72, 80)
        assert (used["strength"], used["image"]) == (strength, REQUEST["image"])
        assert (result.images[0].height, result.images[0].width) == (72, 80)
        picture = download(result)
        assert picture.size == (80, 72)
        far[strength] = float(apart(picture, source).mean())
    assert far[0.1] < far[0.5] < far[1.0]
    origin = json.loads(picture.text["sag-worker"])  # type: ignore[attr-defined]  # a PNG has it
    assert origin["request"] == REQUEST | {"strength": 1.0}
    again = service.client.submit(origin["request"]).result(END_S)
    assert again.images[0].sha256 == result.images[0].sha256


def test_black_of_a_mask_stays(service: Service, upload: Callable[[str, bytes], None]) -> None:
    """Black of a mask stays and white is repainted; the mask may have another size."""
    upload("photo.png", encoded(PICTURE, "PNG"))
    mask = Image.new("L", (30, 20))
    mask.paste(255, (0, 0, 15, 20))  # the left half
    upload("mask.png", encoded(mask, "PNG"))
    request = REQUEST | {"mask_image": {"s3": "mask.png"}, "strength": 1.0}
    far = apart(
        download(service.client.submit(request).result(END_S)),
        PICTURE.resize((80, 72), Image.Resampling.LANCZOS),
    )
    assert far[:, 48:].mean() < far[:, :32].mean() / 2


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (b"a text", "a whole PNG, JPEG or WebP"),
        (png(8_001, 8_000), "<= 64000000 pixels"),
        (animated("PNG"), "one picture"),
        (encoded(photo(width=64, height=63), "PNG"), "each side 64 to"),
    ],
    ids=["text", "bomb", "animated", "small"],
)
def test_a_picture_that_is_refused_fails_its_task_alone(
    service: Service, upload: Callable[[str, bytes], None], data: bytes, limit: str
) -> None:
    """A refused picture fails its task alone, on the first attempt, with field and limit."""
    upload("bad.png", data)
    task = service.client.submit(REQUEST | {"image": {"s3": "bad.png"}})
    with pytest.raises(GenerationFailed) as failed:
        task.result(END_S)
    error = failed.value.error
    assert (error.code, error.retryable) == ("invalid_request", False)
    (fault,) = error.details["faults"]
    assert fault["where"] == "image"
    assert fault["limit"].startswith(limit)
    assert max(event.attempt for event in task.events(timeout=END_S)) == 1
    quick = {"prompt": PROMPT, "num_inference_steps": 1}
    assert service.client.submit(quick).result(END_S).images
