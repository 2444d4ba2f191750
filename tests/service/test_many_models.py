"""One worker and more models than its memory holds at once."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from PIL import Image, ImageDraw

from tests.conftest import BUCKET
from tests.engine.small_models import save_inpainting, save_xl
from tests.pictures import encoded
from tests.service.conftest import END_S, PROMPT
from tests.service.resident_memory import OPEN, SLACK_MIB, memory_mib
from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Service

SAG = {"sag_blur_sigma": 2.0, "sag_mask_threshold": 0.8, "sag_stop": 0.7, "guidance_rescale": 0.5}


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory,
    start_service: Callable[..., AbstractContextManager[Service]],
    redis_url: str,
) -> Iterator[Service]:
    """A worker that keeps two of its three models, and a picture and a mask in its bucket."""
    folder = tmp_path_factory.mktemp("models")
    paths = {
        "default": SHIPPED_MODEL,
        "inpainting": save_inpainting(folder / "inpainting"),
        "xl": save_xl(folder / "xl"),
    }
    models = {name: {"path": str(path), "safety_checker": False} for name, path in paths.items()}
    with start_service(redis_url, models=json.dumps(models), max_models="2", slots="8") as service:
        client = boto3.client("s3", endpoint_url=service.environment["SAG_S3_ENDPOINT_URL"])
        picture, mask = Image.new("RGB", (64, 64), "white"), Image.new("L", (64, 64))
        ImageDraw.Draw(picture).ellipse((12, 10, 52, 50), "green")
        ImageDraw.Draw(mask).rectangle((0, 0, 63, 31), 255)
        for name, drawn in (("picture", picture), ("mask", mask)):
            key = f"{service.environment['SAG_S3_INPUT_PREFIX']}/{name}.png"
            client.put_object(Bucket=BUCKET, Key=key, Body=encoded(drawn, "PNG"))
        yield service


def requests(seed: int) -> Iterator[dict[str, Any]]:
    """Tasks of all three models, with and without pictures, masks and SAG's parameters."""
    rng = random.Random(seed)
    while True:
        model = rng.choice(("default", "inpainting", "xl"))
        request: dict[str, Any] = {
            "model": model, "prompt": PROMPT, "seed": rng.randrange(2**32),
            "num_inference_steps": rng.randint(2, 6), "height": 64, "width": 64,
            "sag_scale": rng.choice((0.0, 0.75)), "num_images_per_prompt": rng.randint(1, 2),
            "preview_every": rng.choice((0, 2)),
        }  # fmt: skip
        masked = model == "inpainting" or rng.random() < 0.25
        if masked or rng.random() < 0.25:
            request |= {"image": {"s3": "picture.png"}, "strength": 0.8}
        if masked:
            request["mask_image"] = {"s3": "mask.png"}
        if request["sag_scale"] and rng.random() < 0.5:
            request |= SAG
        if model == "xl":
            request["prompt_2"] = "a green circle"
        yield request


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(80, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
        pytest.param(1000, marks=[pytest.mark.nightly, pytest.mark.timeout(3000)]),
    ],
)
def test_mixed_tasks_of_three_models(worker: Service, count: int) -> None:
    """Tasks of two families succeed in one worker that loads and drops models; memory is flat."""
    drawn, waiting, marks = requests(seed=16), [], []
    for number in range(count + OPEN):
        if number < count:
            waiting.append(worker.client.submit(next(drawn)))
        if number >= OPEN:
            result = waiting.pop(0).result(END_S)
            assert result.images
        if number >= OPEN and (number - OPEN + 1) % (count // 8) == 0:
            marks.append(memory_mib(worker))
            print(f"{number - OPEN + 1} tasks: {marks[-1]:.0f} MiB resident")
    loads = re.findall(r"evicted model (\w+)", worker.log.read_text())
    print(f"models were dropped {len(loads)} times")
    assert {*loads} == {"default", "inpainting", "xl"}
    assert max(marks[-2:]) - max(marks[1:3]) < SLACK_MIB
