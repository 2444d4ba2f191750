"""Decodes latents, and makes images on the host of what the device has decoded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from worker import metrics
from worker.engine import device_errors
from worker.engine.job import GeneratedImage
from worker.errors import NotFiniteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.image_state import ImageState
    from worker.engine.pipeline import Pipeline

logger = logging.getLogger(__name__)


def decode(pipe: Pipeline, images: Sequence[ImageState], most: int) -> list[torch.Tensor | None]:
    """Each image on the device, (1, 3, height, width) in -1 … 1; None for output `latent`.

    At most `most` images of one size share a call.
    """
    groups: dict[torch.Size, list[ImageState]] = {}
    for image in images:
        if image.job.output_type != "latent":
            groups.setdefault(image.latents.shape, []).append(image)
    decoded: dict[ImageState, torch.Tensor] = {}
    for group in groups.values():
        for begin in range(0, len(group), most):
            some = group[begin : begin + most]
            decoded |= zip(some, _decode_some(pipe, some), strict=True)
    return [decoded.get(image) for image in images]


def generated(pipe: Pipeline, image: ImageState, decoded: torch.Tensor | None) -> GeneratedImage:
    """An image on the host, checked by the safety checker if the model has one.

    Waits for the device. Raises `NotFiniteError` for what is no picture.
    """
    factor = pipe.vae_scale_factor
    height, width = (side * factor for side in image.latents.shape[-2:])
    _check_finite(image, decoded)
    if decoded is None:
        return GeneratedImage(image.latents[0].float().cpu(), width, height, image.seed, None)
    decoded, flags = pipe.run_safety_checker(decoded, decoded.device, decoded.dtype)
    pixels = pipe.image_processor.postprocess(
        decoded,
        output_type="np" if image.job.output_type == "npy" else "pil",
        do_denormalize=[not flag for flag in flags] if flags is not None else None,
    )[0]
    return GeneratedImage(
        pixels, width, height, image.seed, None if flags is None else bool(flags[0])
    )


def _decode_some(pipe: Pipeline, images: Sequence[ImageState]) -> list[torch.Tensor]:
    """Decode images of one size; after an out-of-memory error, half as many at a time."""
    size, decoded = len(images), list[torch.Tensor]()
    while len(decoded) < len(images):
        some = images[len(decoded) : len(decoded) + size]
        try:
            decoded += _decode_once(pipe, torch.cat([image.latents for image in some])).split(1)
            continue
        except RuntimeError as error:
            if size == 1 or not device_errors.is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()  # outside of the handler, which keeps the call's tensors
        size = (size + 1) // 2
    return decoded


def _decode_once(pipe: Pipeline, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents of one size; in float32 from the first one that half precision overflows.

    For the check the host waits for the device, once for each decode in half precision.
    """
    vae = pipe.vae
    latents = latents / vae.config.scaling_factor
    decoded: torch.Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    if vae.dtype == torch.float32 or bool(decoded.isfinite().all() | ~latents.isfinite().all()):
        return decoded
    logger.warning("the VAE overflows in %s; it runs in float32 from now on", vae.dtype)
    metrics.DECODED_AGAIN.inc(len(latents))
    vae.to(torch.float32)
    again: torch.Tensor = vae.decode(latents.float(), return_dict=False)[0]
    return again


def _check_finite(image: ImageState, decoded: torch.Tensor | None) -> None:
    """Raise `NotFiniteError` for an image that would be black, or latents that hold NaN."""
    if not bool(image.latents.isfinite().all()):
        raise NotFiniteError(
            f"the latents of seed {image.seed} are no numbers: the model overflows with these"
            " values; lower guidance_scale or sag_scale, or use another scheduler or precision"
        )
    if decoded is not None and not bool(decoded.isfinite().all()):
        raise NotFiniteError(
            f"the image of seed {image.seed} can't be decoded: the model's VAE gives no numbers"
        )
