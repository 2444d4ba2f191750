"""One worker and more adapters of a model than it keeps loaded."""

from __future__ import annotations

import json
import random
import re
import urllib.request
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.engine import lora_files, oracle
from tests.engine.diffusers_alone import bare
from tests.engine.jobs import SPEC, job
from tests.service.conftest import END_S, PROMPT
from tests.service.resident_memory import OPEN, SLACK_MIB, memory_mib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from api_contracts import GenerationResult
    from tests.conftest import Service

#: Adapters of the model, and how many of them are kept loaded.
NAMES, BUDGET = ("ink", "oil", "wax", "tar", "gum", "ash", "dye", "lac"), 4
#: Tasks that differ: the others repeat them.
KINDS = 16
STEPS = 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Any]]]:
    """Eight LoRA files, in kohya's format and in peft's, with text encoders and convolutions."""
    folder, pipe = tmp_path_factory.mktemp("adapters"), bare(SPEC.path)
    made = {}
    for seed, name in enumerate(NAMES):
        which = lora_files.layers(
            pipe,
            seed,
            unet=(lora_files.ATTENTION, lora_files.CONVOLUTIONS)[seed % 2],
            texts=(None, None, lora_files.TEXTS)[seed % 3],
        )
        path = folder / f"{name}.safetensors"
        made[name] = path, lora_files.save(path, which, ("kohya", "peft")[seed % 2])
    return made


@pytest.fixture(scope="module")
def worker(
    weights: dict[str, tuple[Path, list[Any]]],
    start_service: Callable[..., AbstractContextManager[Service]],
    redis_url: str,
) -> Iterator[Service]:
    """A worker that keeps four of its eight adapters."""
    files = {name: path for name, (path, _) in weights.items()}
    spec = lora_files.with_adapters(SPEC, files)
    models = json.dumps({"default": spec.model_dump(mode="json", exclude_defaults=True)})
    with start_service(redis_url, models=models, max_adapters=str(BUDGET), slots="8") as service:
        yield service


def requests() -> list[dict[str, Any]]:
    """Tasks of none to three adapters at several scales, with and without both guidances."""
    dice = random.Random(17)
    return [
        {
            "prompt": PROMPT, "seed": seed, "num_inference_steps": STEPS,
            "sag_scale": dice.choice((0.0, 0.75)), "guidance_scale": dice.choice((1.0, 3.0)),
            "loras": [
                {"name": name, "scale": dice.choice((-0.5, 0.4, 0.8, 1.0))}
                for name in dice.sample(NAMES, seed % 4)
            ],
        }
        for seed in range(KINDS)
    ]  # fmt: skip


def alone(request: dict[str, Any], weights: dict[str, tuple[Path, list[Any]]]) -> np.ndarray:
    """The picture of a request by diffusers, its adapters added to the model's weights."""
    pipe = bare(SPEC.path)
    for each in request["loras"]:
        lora_files.merge(pipe, weights[each["name"]][1], each["scale"])
    wanted = job(
        prompts=(request["prompt"],), seeds=(request["seed"],), num_inference_steps=STEPS,
        sag_scale=request["sag_scale"], guidance_scale=request["guidance_scale"],
    )  # fmt: skip
    latents = (oracle.alone if wanted.sag_scale else oracle.plain)(pipe, wanted)
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return np.asarray(pipe.image_processor.postprocess(decoded.detach())[0], int)


def picture(result: GenerationResult) -> np.ndarray:
    data = urllib.request.urlopen(str(result.images[0].url), timeout=30).read()
    with Image.open(BytesIO(data)) as opened:
        return np.asarray(opened, int)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(80, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
        pytest.param(1000, marks=[pytest.mark.nightly, pytest.mark.timeout(3000)]),
    ],
)
def test_mixed_tasks_of_eight_adapters(
    worker: Service, weights: dict[str, tuple[Path, list[Any]]], count: int
) -> None:
    """Tasks of eight adapters under a budget of four succeed, each as alone; memory is flat."""
    kinds = requests()
    expected = [alone(each, weights) for each in kinds]
    dice, waiting, marks, batches = random.Random(3), [], [], []
    for number in range(count + OPEN):
        if number < count:
            kind = dice.randrange(KINDS)
            waiting.append((kind, worker.client.submit(kinds[kind])))
        if number >= OPEN:
            kind, handle = waiting.pop(0)
            result = handle.result(END_S)
            assert np.abs(picture(result) - expected[kind]).max() <= 1
            batches.append(result.batch)
        if number >= OPEN and (number - OPEN + 1) % (count // 8) == 0:
            marks.append(memory_mib(worker))
            print(f"{number - OPEN + 1} tasks: {marks[-1]:.0f} MiB resident")
    unloaded = re.findall(r"unloaded adapter (\w+)", worker.log.read_text())
    print(f"adapters were unloaded {len(unloaded)} times; {np.mean(batches):.1f} tasks a call")
    assert len({*unloaded}) > BUDGET
    assert np.mean(batches) > 1.5
    assert max(marks[-2:]) - max(marks[1:3]) < SLACK_MIB
