"""Pictures by diffusers' own `StableDiffusionSAGPipeline`, one task after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionSAGPipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

    from benchmarks.model import Model
    from benchmarks.tasks import Task


def load(model: Model) -> Any:  # noqa: ANN401  # a diffusers pipeline
    """The pipeline, resident on the device."""
    pipeline = StableDiffusionSAGPipeline.from_pretrained(
        str(model.path),
        dtype=getattr(torch, model.usual_dtype),
        safety_checker=None,
        requires_safety_checker=False,
        use_safetensors=True,
        local_files_only=True,
    ).to(model.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures(
    pipeline: Any,  # noqa: ANN401  # a diffusers pipeline
    tasks: Sequence[Task],
    after_step: Callable[[], None] = lambda: None,
) -> list[Image.Image]:
    """One call for all tasks, which have the same steps and scales; gives a picture of each."""
    first = tasks[0]
    images: list[Image.Image] = pipeline(
        prompt=[task.prompt for task in tasks],
        height=first.height,
        width=first.width,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        sag_scale=first.sag_scale,
        generator=[torch.Generator("cpu").manual_seed(task.seed) for task in tasks],
        output_type="pil",
        callback=lambda _index, _timestep, _latents: after_step(),
        callback_steps=1,
    ).images
    return images
