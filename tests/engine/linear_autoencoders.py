"""Autoencoders that are linear, or of no use, for the map from latents to colours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from worker.engine import previews
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loaded_model import LoadedModel

if TYPE_CHECKING:
    from worker.engine.previews import PreviewMap


class LinearAutoencoder:
    """Colours to latents by a matrix, cell by cell, for which the map is exact."""

    dtype = torch.float32
    config = SimpleNamespace(scaling_factor=0.5)

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.matrix = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        self.shift = torch.tensor([0.3, -0.2, 0.5, 0.1])

    def encode(self, pictures: torch.Tensor) -> Any:
        """Pictures (n, 3, h, w) in -1 … 1 to a distribution with a mean (n, 4, h / f, w / f)."""
        assert pictures.shape[1] == 3
        assert float(pictures.abs().max()) <= 1
        cells = functional.avg_pool2d(pictures, self.factor).movedim(1, -1)
        mean = (cells @ self.matrix + self.shift).movedim(-1, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))


class TinyAutoencoder(LinearAutoencoder):
    """Gives latents themselves, as diffusers' `AutoencoderTiny` does."""

    def encode(self, pictures: torch.Tensor) -> Any:
        """Pictures to latents."""
        return SimpleNamespace(latents=super().encode(pictures).latent_dist.mean)


class OverflowingAutoencoder(LinearAutoencoder):
    """Its encoder overflows in half precision."""

    def encode(self, pictures: torch.Tensor) -> Any:
        """Pictures to no numbers."""
        mean = super().encode(pictures).latent_dist.mean * float("inf")
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))


class DecoderOnly:
    """An autoencoder without an encoder."""

    dtype = torch.float32


def fitted(vae: Any) -> PreviewMap | None:
    pipe = SimpleNamespace(vae=vae, vae_scale_factor=8)
    return previews.fit(LoadedModel(StableDiffusion(), pipe, "cpu", "none"))
