"""The bundled model is small, safe to load, measured, and draws what it is asked for."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import StableDiffusionPipeline

from training import card, evaluate
from training.export import fingerprint
from training.judge import judge
from training.shapes import COLOURS, SHAPES, single
from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = SHIPPED_MODEL
LARGEST_BYTES = 15_000_000
SUFFIXES = {".safetensors", ".json", ".md", ".png"}
PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    """The bundled model, loaded as its card says."""
    loaded = StableDiffusionPipeline.from_pretrained(FOLDER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_is_small_and_safe() -> None:
    """The folder is below 15 MB and holds nothing that runs code when it is loaded."""
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LARGEST_BYTES
    assert {file.suffix for file in files} == SUFFIXES


def test_loads_in_one_precision(pipeline: StableDiffusionPipeline) -> None:
    """Without a `torch_dtype` all parts are fp32, and the VAE knows its scale."""
    assert {getattr(pipeline, part).dtype for part in PARTS} == {torch.float32}
    assert pipeline.safety_checker is None
    config = json.loads((FOLDER / "vae" / "config.json").read_text())
    assert pipeline.vae.config.scaling_factor == config["scaling_factor"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loads_in_the_precision_asked_for(dtype: torch.dtype) -> None:
    """A `torch_dtype` is the type of all parts."""
    loaded = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=dtype)
    assert {getattr(loaded, part).dtype for part in PARTS} == {dtype}


@pytest.mark.parametrize("shapes", [SHAPES[:2], pytest.param(SHAPES, marks=pytest.mark.slow)])
def test_draws_what_is_asked(pipeline: StableDiffusionPipeline, shapes: Sequence[str]) -> None:
    """Of prompts that were kept from training, one for each shape, all but one are right."""
    rng = random.Random(0)
    scenes = []
    for shape in shapes:
        while True:
            colour, background = rng.sample(sorted(COLOURS), 2)
            scene = single(colour, shape, background, "large")
            if scene.held_out:
                break
        scenes.append(scene)
    pictures = pipeline(
        [scene.caption for scene in scenes],
        num_inference_steps=25,
        guidance_scale=evaluate.read(FOLDER).guidance_scale,
        generator=[torch.Generator().manual_seed(row) for row in range(len(scenes))],
    ).images
    right = [judge(*pair).everything for pair in zip(pictures, scenes, strict=True)]
    assert sum(right) >= len(scenes) - 1


def test_is_the_model_that_was_measured() -> None:
    """The saved evaluation is of the bundled weights."""
    assert evaluate.read(FOLDER).weights_sha256 == fingerprint(FOLDER)


def test_reaches_the_bar() -> None:
    """With and without self-attention guidance, 95 % of colours and 90 % of shapes are right."""
    for result in evaluate.read(FOLDER).results:
        if result.sag_scale in evaluate.TUNING_SAG_SCALES:
            assert result.shares["background"].share >= 0.95
            assert result.shares["colour"].share >= 0.95
            assert result.shares["shape"].share >= 0.90


def test_the_card_says_what_the_files_say() -> None:
    """The card is the one that its files give."""
    assert (FOLDER / card.FILE).read_text() == card.text(FOLDER)
