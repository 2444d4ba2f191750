"""Small pictures of what is not done yet: by a linear map from latents to colours, where near."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from PIL import Image

#: Longest side of a preview, in pixels.
SIDE_PX = 128
#: Below this alpha an x0 is mostly noise, and dividing by alpha would make it worse.
LEAST_ALPHA = 0.05
#: A map that leaves more of the variance than this is not shown where the autoencoder is at hand.
UNEXPLAINED = 0.2
#: Pictures that a map is fitted to.
_PICTURES = 16


@dataclass(frozen=True)
class PreviewMap:
    """colour = latent @ weights + bias, cell by cell: (channels, 3) and (3,), on the host."""

    weights: torch.Tensor
    bias: torch.Tensor
    #: Share of the colours' variance that it leaves; an autoencoder need not be nearly linear.
    unexplained: float = 0.0

    def data_url(self, latents: torch.Tensor) -> str:
        """A JPEG of latents (1, channels, height, width), at most `SIDE_PX` wide and high."""
        cells = latents[0].float().cpu().movedim(0, -1)
        return data_url(cells @ self.weights + self.bias)


def fit(pipe: Any) -> PreviewMap:  # noqa: ANN401  # a diffusers pipeline
    """The map that is best, by least squares, for soft patches of colour and their latents."""
    vae, factor = pipe.vae, pipe.vae_scale_factor
    device = pipe._execution_device  # noqa: SLF001  # diffusers' own way to ask
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(_PICTURES, 3, 4, 4, generator=generator) * 2 - 1
    pictures = F.interpolate(patches, scale_factor=2 * factor, mode="nearest")
    latents = (
        vae.encode(pictures.to(device, vae.dtype)).latent_dist.mean * vae.config.scaling_factor
    )
    cells = latents.float().cpu().movedim(1, -1).flatten(0, 2)
    colours = F.avg_pool2d(pictures, factor).movedim(1, -1).flatten(0, 2)
    known = torch.cat([cells, torch.ones(len(cells), 1)], dim=1)
    solved = torch.linalg.lstsq(known, colours).solution
    left = (known @ solved - colours).var() / colours.var()
    return PreviewMap(solved[:-1], solved[-1], float(left))


def data_url(colours: torch.Tensor) -> str:
    """A JPEG of colours (height, width, 3) in -1 … 1, `SIDE_PX` wide or high."""
    image = Image.fromarray(((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())
    scale = SIDE_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
