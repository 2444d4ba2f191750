"""Decodes the latents of one model, and makes images on the host of what it has decoded."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import torch

from worker import metrics
from worker.engine.device import device_errors, warmup
from worker.engine.jobs.job import GeneratedImage, refusal
from worker.engine.pipeline import dtype_of
from worker.errors import NotFiniteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.image_state import ImageState
    from worker.engine.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

#: A VAE that overflowed in half precision so many times decodes in float32 for good.
MAX_OVERFLOWS = 3


class Decoder:
    """The VAE of one model. `decode` is for the engine's thread, the rest for any."""

    def __init__(self, model: LoadedModel, max_images: int) -> None:
        """Warm up on a GPU. At most `max_images` of one size share a call, fewer if need be."""
        self._family, self._pipe = model.family, model.pipeline
        #: Held during a call: half precision may end between two of them.
        self._lock = threading.Lock()
        self._overflows = 0
        #: Images of one call in place of rows.
        self.capacity, self.needed_bytes = warmup.decode_capacity(model, max_images)

    def decode(self, images: Sequence[ImageState]) -> list[torch.Tensor | None]:
        """Each image on the device, (1, 3, height, width) in -1 … 1; None for output `latent`."""
        groups: dict[torch.Size, list[ImageState]] = {}
        for image in images:
            if image.job.output_type != "latent":
                groups.setdefault(image.latents.shape, []).append(image)
        decoded: dict[ImageState, torch.Tensor] = {}
        for group in groups.values():
            done = 0
            while done < len(group):
                some = self._decode_some(group[done:])
                decoded |= zip(group[done:], some, strict=False)
                done += len(some)
        return [decoded.get(image) for image in images]

    def picture(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents of one size, (n, c, h, w), without a check: for previews."""
        with self._lock:
            return self._decode_in(latents, self._pipe.vae.dtype)

    def generated(self, image: ImageState, decoded: torch.Tensor | None) -> GeneratedImage:
        """An image on the host, checked by the safety checker if the model has one.

        Waits for the device. Raises `NotFiniteError` for what is no picture.
        """
        pipe = self._pipe
        factor = pipe.vae_scale_factor
        height, width = (side * factor for side in image.latents.shape[-2:])
        _check_finite(image, decoded)
        if decoded is None:
            return GeneratedImage(image.latents[0].float().cpu(), width, height, image.seed, None)
        flags = None
        if getattr(pipe, "safety_checker", None) is not None:
            # The checker keeps the model's precision when the VAE has changed to float32.
            decoded, flags = pipe.run_safety_checker(decoded, decoded.device, dtype_of(pipe))
        pixels = pipe.image_processor.postprocess(
            decoded,
            output_type="np" if image.job.output_type == "npy" else "pil",
            do_denormalize=[not flag for flag in flags] if flags is not None else None,
        )[0]
        return GeneratedImage(
            pixels, width, height, image.seed, None if flags is None else bool(flags[0])
        )

    def _decode_some(self, images: Sequence[ImageState]) -> list[torch.Tensor]:
        """Decode the first images, all of one size, as many as fit; at least one."""
        height, width = images[0].latents.shape[-2:]
        while True:
            some = images[: self.capacity.limit(height, width)]
            try:
                decoded = self._decode_once(torch.cat([image.latents for image in some]))
            except RuntimeError as error:
                if len(some) == 1 or not device_errors.is_out_of_memory(error):
                    raise
                self.capacity = self.capacity.halved(len(some), height, width)
                logger.warning("decoding %d images was out of memory; now fewer", len(some))
            else:
                self.capacity = self.capacity.after_call()
                return decoded
            torch.cuda.empty_cache()  # outside of the handler, which keeps the call's tensors

    def _decode_once(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Decode latents of one size; those that half precision overflows again in float32.

        For the check the host waits for the device, once for each decode in half precision.
        """
        with self._lock:
            dtype = self._pipe.vae.dtype
            decoded = self._decode_in(latents, dtype)
            images = list(decoded.split(1))
            if dtype == torch.float32:
                return images
            overflowed = ~_finite_rows(decoded) & _finite_rows(latents)
            if not bool(overflowed.any()):
                return images
            again = self._decode_in_float32(latents[overflowed])
        metrics.DECODED_AGAIN.inc(len(again))
        for index, image in zip(overflowed.nonzero().flatten().tolist(), again, strict=True):
            images[index] = image
        return images

    def _decode_in_float32(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Decode in float32; the VAE stays so from the `MAX_OVERFLOWS`th time on."""
        vae = self._pipe.vae
        dtype, stays = vae.dtype, self._overflows + 1 >= MAX_OVERFLOWS
        logger.warning(
            "the VAE overflows in %s; decoding in float32%s", dtype, " from now on" if stays else ""
        )
        is_decoded = False
        try:
            vae.to(torch.float32)
            decoded = list(self._decode_in(latents.float(), torch.float32).split(1))
            is_decoded = True
        finally:
            if not (stays and is_decoded):  # also what was converted when memory ran out
                vae.to(dtype)
        self._overflows += 1
        return decoded

    def _decode_in(self, latents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        latents = self._family.to_autoencoder(self._pipe, latents).to(dtype)
        decoded: torch.Tensor = self._pipe.vae.decode(latents, return_dict=False)[0]
        return decoded


def _finite_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all numbers of each image are finite, (n,)."""
    return tensor.isfinite().flatten(1).all(1)


def _check_finite(image: ImageState, decoded: torch.Tensor | None) -> None:
    """Raise `NotFiniteError` for an image that would be black, or latents that hold NaN.

    Raises `BadRequestError` if the cause is the encoding of the picture to start from. That is only
    checked here: an earlier check would make the engine's thread wait for the device.
    """
    if not bool(image.latents.isfinite().all()):
        if not all(bool(each.isfinite().all()) for each in image.encoded):
            what = f"can't be encoded: the model's autoencoder overflows in {image.latents.dtype}"
            raise refusal("image", what, "a picture that it encodes in finite numbers")
        raise NotFiniteError(
            f"the latents of seed {image.seed} are no numbers: the model overflows with these"
            " values; lower guidance_scale or sag_scale, or use another scheduler or precision"
        )
    if decoded is not None and not bool(decoded.isfinite().all()):
        raise NotFiniteError(
            f"the image of seed {image.seed} can't be decoded: the model's VAE gives no numbers"
        )
