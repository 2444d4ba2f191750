"""Names for diffusers' untyped objects, and what the engine reads from a pipeline. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

#: A `StableDiffusionPipeline`, a `StableDiffusionXLPipeline` or our `PixelPipeline`. diffusers
#: ships no types.
Pipeline: TypeAlias = Any
#: A `diffusers.UNet2DConditionModel`, or a `UNet2DModel` of pixels.
Unet: TypeAlias = Any
#: A scheduler of diffusers, of any class: they have no common base.
DiffusersScheduler: TypeAlias = Any


def dtype_of(pipe: Pipeline) -> torch.dtype:
    """Precision of latents, embeddings and of all networks but the UNet, which may have less.

    diffusers too takes that of the text encoder.
    """
    dtype: torch.dtype = getattr(pipe, "text_encoder", pipe.vae).dtype
    return dtype


def native_size(pipe: Pipeline) -> tuple[int, int]:
    """Height and width of the latents that the model was trained on."""
    size = pipe.unet.config.sample_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])
