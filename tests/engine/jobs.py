"""Jobs for the engine's tests, and what diffusers alone makes of the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from worker.engine.job import Job
from worker.settings import SHIPPED_MODEL, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.job import JobResult
    from worker.engine.models import LoadedModel

#: The fixture `make`: runs a job of these fields, and of a `control`.
Make: TypeAlias = "Callable[..., JobResult]"

SPEC = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False)


def fresh() -> LoadedModel:
    """The shipped model, loaded anew."""
    from worker.engine import models

    return models.load(SPEC, "cpu", "none")


def job(**changes: Any) -> Job:
    """A job of three steps, with `changes`."""
    given: dict[str, Any] = {
        "id": "a",
        "model": "default",
        "prompts": ("a large red star on a blue background",),
        "negative_prompts": (),
        "height": None,
        "width": None,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "sag_scale": 0.75,
        "num_images_per_prompt": 1,
        "eta": 0.0,
        "seeds": (5,),
        "max_images": 4,
        "scheduler": None,
        "output_type": "latent",
    }
    return Job(**(given | changes))


def upstream(model: LoadedModel, **arguments: Any) -> torch.Tensor:
    """Latents of diffusers' SAG pipeline by its own `__call__`, nothing of ours between."""
    given: dict[str, Any] = {
        "prompt": "a large red star on a blue background",
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "sag_scale": 0.75,
        "generator": [torch.Generator("cpu").manual_seed(5)],
        "output_type": "latent",
    }
    latents: torch.Tensor = model.pipeline(**(given | arguments)).images
    return latents


def latents_of(result: JobResult) -> torch.Tensor:
    return torch.stack([picture.pixels for picture in result.pictures])
