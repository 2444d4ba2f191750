"""Pictures from the exported folder, as diffusers' own self-attention guidance draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from diffusers import StableDiffusionSAGPipeline

from training.shapes import SIDE_PX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

BATCH = 25


@dataclass(frozen=True)
class Sampling:
    """The settings of a set of pictures."""

    guidance_scale: float
    sag_scale: float
    steps: int = 25
    side_px: int = SIDE_PX
    #: The n-th picture of a set starts from the noise of this seed plus n.
    seed: int = 1000


def load(folder: Path) -> StableDiffusionSAGPipeline:
    """The exported pipeline in fp32, silent."""
    pipeline = StableDiffusionSAGPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return cast("StableDiffusionSAGPipeline", pipeline)


def draw(
    pipeline: StableDiffusionSAGPipeline, prompts: Sequence[str], sampling: Sampling
) -> list[Image.Image]:
    """One RGB picture for each prompt, of `side_px` square."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        batch = list(prompts[start : start + BATCH])
        first = sampling.seed + start
        pictures += pipeline(
            batch,
            height=sampling.side_px,
            width=sampling.side_px,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            sag_scale=sampling.sag_scale,
            generator=[torch.Generator().manual_seed(first + row) for row in range(len(batch))],
        ).images
    return pictures
