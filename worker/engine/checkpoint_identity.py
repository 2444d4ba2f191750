"""Which job a checkpoint belongs to: what must be equal in its file and in the job that resumes."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import diffusers
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.image_state import ImageState
    from worker.engine.jobs.job import Job
    from worker.engine.sampling.sampler_state import SamplerState

#: Version of the file's layout; other versions are not read.
FORMAT = 1
#: Fields of a job that its latents do not depend on.
_IRRELEVANT = frozenset(
    {
        "id",
        "priority",
        "max_images",
        "max_side_px",
        "output_type",
        "preview_every",
        "checkpoint_every",
        "checkpoint",
    }
)
#: Fields that were added after the first version. Their defaults mean what it did without them and
#: are left out of the digest, so that both versions take over from each other's checkpoints.
_ADDED = frozenset(
    {
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
        "prompts_2",
        "negative_prompts_2",
        "original_size",
        "crops_coords_top_left",
        "target_size",
        "image",
        "mask_image",
        "strength",
        "sag_blur_sigma",
        "sag_mask_threshold",
        "sag_start",
        "sag_stop",
        "guidance_rescale",
        "class_labels",
        "loras",
    }
)


def identity(images: Sequence[ImageState]) -> dict[str, Any]:
    """What must be equal in job and file, as JSON; otherwise the file is of another image."""
    job, sampler, latents = images[0].job, images[0].sampler, images[0].latents
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "diffusers": str(diffusers.__version__),
        "scheduler": sampler.name,
        "steps": job.num_inference_steps,
        "seeds": [image.seed for image in images],
        "dtype": _dtypes(images[0]),
        "shape": list(latents.shape),
        "sampler's settings": sampler_digest(sampler),
        "request": job_digest(job),
    }


def _dtypes(image: ImageState) -> str:
    """Precision of latents and UNet, one name where they have the same."""
    latents, unet = str(image.latents.dtype), f"torch.{image.unet_dtype}"
    return latents if latents == unet else f"{latents}, UNet in {unet}"


def sampler_digest(sampler: SamplerState) -> str:
    """Digest of the scheduler's configuration, which includes the model's noise schedule."""
    # Names with an underscore are diffusers' metadata, some in the random order of a set.
    config = sorted(
        (name, repr(value))
        for name, value in sampler.scheduler.config.items()
        if not name.startswith("_")
    )
    return _digest(repr((sampler.predictions, config)).encode())


def job_digest(job: Job) -> str:
    """Digest of all fields that the latents depend on."""
    parts: list[bytes] = []
    for each in dataclasses.fields(job):
        value = getattr(job, each.name)
        is_unused = each.name in _ADDED and value == each.default
        if each.name not in _IRRELEVANT and not is_unused:
            encoded = value if isinstance(value, bytes) else repr(value).encode()
            parts += [each.name.encode(), encoded]
    return _digest(*parts)


def _digest(*parts: bytes) -> str:
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(part)
    return total.hexdigest()
