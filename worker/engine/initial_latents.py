"""What an image is denoised from: noise, or a picture with noise, with or without a mask.

Generators draw in the order of diffusers' pipelines, so that a seed gives the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it

from worker.engine.device import device_memory
from worker.engine.sampling import host_noise

if TYPE_CHECKING:
    from worker.engine.jobs.job import Job
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.sampling.sampler_state import SamplerState

#: Pixels of a mask above this value are repainted.
_MASK_VALUE = 127


@dataclass(frozen=True)
class Encoded:
    """What the autoencoder gives for a picture: a distribution, each (1, c, h, w)."""

    mean: torch.Tensor
    #: None for a tiny autoencoder: it gives latents, and nothing is drawn for them.
    deviation: torch.Tensor | None


@dataclass(frozen=True)
class Source:
    """The picture that a job starts from."""

    picture: Encoded
    #: The picture without what is repainted, and 1 where that is, (1, 1, h, w).
    masked: Encoded | None
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Blend:
    """Inpainting by a UNet without mask: each evaluation ends with the picture put back around it.

    Each is (1, c, h, w), the mask (1, 1, h, w).
    """

    #: True where it is repainted.
    mask: torch.Tensor
    picture: torch.Tensor
    noise: torch.Tensor

    def apply(self, latents: torch.Tensor, weights: tuple[float, float] | None) -> torch.Tensor:
        """`latents` where the mask is set, and the picture elsewhere.

        `weights` are of the picture and of the noise at the latents' noise level; None at the end.
        """
        rest = self.picture
        if weights is not None:
            rest = torch.add(weights[0] * self.picture, self.noise, alpha=weights[1])
        return torch.where(self.mask, latents, rest)


@dataclass(frozen=True)
class Start:
    """What one image starts with."""

    #: (1, c, h, w), in the scale of the sampler.
    latents: torch.Tensor
    #: What was drawn of the picture, in the scale of the UNet.
    picture: torch.Tensor | None = None
    blend: Blend | None = None
    #: Inputs of a UNet made for inpainting, beside the latents: mask and masked picture.
    channels: torch.Tensor | None = None


def encode(model: LoadedModel, job: Job) -> Source | None:
    """Encode the picture that a job starts from; None for one that starts from noise."""
    if job.image is None:
        return None
    model.need("vae")
    device, size = torch.device(model.device), (job.height or 0, job.width or 0)
    pixels = _bytes(job.image).view(1, *size, 3).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    if job.mask_image is None:
        return Source(_encoded(model, pixels), None, None)
    mask = (_bytes(job.mask_image).view(1, 1, *size) > _MASK_VALUE).float()
    masked = _encoded(model, pixels * (1 - mask))
    # From noise alone a UNet made for inpainting takes no more of the picture than its shape.
    is_unused = model.takes_mask and job.strength == 1
    picture = masked if is_unused else _encoded(model, pixels)
    small = F.interpolate(mask, tuple(picture.mean.shape[-2:]))
    return Source(picture, masked, device_memory.to_device(small, device))


@dataclass(frozen=True)
class StartDraw:
    """Draws the start of one image of a job that starts from a picture."""

    model: LoadedModel
    source: Source
    sampler: SamplerState
    generator: torch.Generator
    dtype: torch.dtype
    #: Whether what is repainted starts as noise alone: strength 1.
    is_all_noise: bool

    def start(self) -> Start:
        """By image to image, or by inpainting with or without channels for it."""
        if self.source.masked is None or self.source.mask is None:
            picture = self._sample(self.source.picture)
            return Start(self._noisy(picture, self._noise()), picture)
        mask = self.source.mask.to(self.dtype)
        if self.model.takes_mask:
            return self._with_channels(mask, self.source.masked)
        picture, noise = self._sample(self.source.picture), self._noise()
        noisy = self._pure(noise) if self.is_all_noise else self._noisy(picture, noise)
        # diffusers draws it and does not use it; what a sampler draws later depends on that.
        self._sample(self.source.masked)
        return Start(noisy, picture, Blend(mask.bool(), picture, noise))

    def _with_channels(self, mask: torch.Tensor, masked: Encoded) -> Start:
        picture = None if self.is_all_noise else self._sample(self.source.picture)
        noise = self._noise()
        noisy = self._pure(noise) if picture is None else self._noisy(picture, noise)
        return Start(noisy, picture, channels=torch.cat([mask, self._sample(masked)], dim=1))

    def _sample(self, encoded: Encoded) -> torch.Tensor:
        """Latents in the scale of the UNet."""
        latents = encoded.mean
        if encoded.deviation is not None:
            latents = latents + encoded.deviation * self._noise(latents.dtype)
        return self.model.family.from_autoencoder(self.model.pipeline, latents).to(self.dtype)

    def _noise(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        mean = self.source.picture.mean
        return host_noise.randn_tensor(
            tuple(mean.shape), self.generator, mean.device, dtype or self.dtype
        )

    def _noisy(self, picture: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The picture at the noise level of the first step that is made."""
        of_picture, of_noise = self.sampler.mixing[0]
        return of_picture * picture + of_noise * noise

    def _pure(self, noise: torch.Tensor) -> torch.Tensor:
        """Noise alone, in the scale of the sampler."""
        scaled: torch.Tensor = noise * self.sampler.scheduler.init_noise_sigma
        return scaled


def _encoded(model: LoadedModel, pixels: torch.Tensor) -> Encoded:
    """`pixels` are on the host, (1, 3, height, width) in -1 … 1."""
    vae = model.pipeline.vae
    found = vae.encode(device_memory.to_device(pixels.to(vae.dtype), torch.device(model.device)))
    if hasattr(found, "latents"):  # of a tiny autoencoder
        return Encoded(found.latents, None)
    return Encoded(found.latent_dist.mean, found.latent_dist.std)


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
