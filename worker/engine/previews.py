"""Previews of unfinished images, by a linear map from latents to colours or by decoding."""

from __future__ import annotations

import base64
import io
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from PIL import Image

from worker.engine.device import device_errors

if TYPE_CHECKING:
    from worker.engine.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

#: Longest side of a preview.
SIDE_PX = 128
#: Below this alpha, x0 is mostly noise, which dividing by alpha would amplify.
MIN_ALPHA = 0.05
#: A map that leaves more of the variance unexplained is used only with offload.
MAX_UNEXPLAINED = 0.2
#: Random images that the map is fitted to.
_FITTED_IMAGES = 16


@dataclass(frozen=True)
class PreviewMap:
    """colour = latent @ weights + bias for each cell; (channels, 3) and (3,), on the host."""

    weights: torch.Tensor
    bias: torch.Tensor
    #: Share of the colours' variance that the map leaves unexplained.
    unexplained: float = 0.0

    def data_url(self, latents: torch.Tensor) -> str:
        """A JPEG data URL of latents (1, channels, height, width)."""
        cells = latents[0].float().cpu().movedim(0, -1)
        return data_url(cells @ self.weights + self.bias)


def fit(model: LoadedModel) -> PreviewMap | None:
    """The least-squares map for the autoencoder's latents of random soft patches of colour.

    None, with a warning, for an autoencoder whose encoder fails or overflows: it serves nothing
    else, and previews are no condition for images. Raises what a device raises that is out of
    memory or failed: the encoder is not to blame.
    """
    try:
        found = _fit(model)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, torch.AcceleratorError) or device_errors.is_out_of_memory(error):
            raise
        logger.warning("previews can't be mapped with this model's encoder: %r", error)
        return None
    if not bool(torch.cat([found.weights.flatten(), found.bias]).isfinite().all()):
        logger.warning("previews can't be mapped: this model's encoder gives no numbers")
        return None
    return found


def _fit(model: LoadedModel) -> PreviewMap:
    pipe, device = model.pipeline, torch.device(model.device)
    vae, factor = pipe.vae, pipe.vae_scale_factor
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(_FITTED_IMAGES, 3, 4, 4, generator=generator) * 2 - 1
    images = F.interpolate(patches, scale_factor=2 * factor, mode="nearest")
    encoded = vae.encode(images.to(device, vae.dtype))
    # A tiny autoencoder gives latents themselves, not their distribution.
    mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    latents = model.family.from_autoencoder(pipe, mean)
    cells = latents.float().cpu().movedim(1, -1).flatten(0, 2)
    colours = F.avg_pool2d(images, factor).movedim(1, -1).flatten(0, 2)
    known = torch.cat([cells, torch.ones(len(cells), 1)], dim=1)
    solution = torch.linalg.lstsq(known, colours).solution
    unexplained = (known @ solution - colours).var() / colours.var()
    return PreviewMap(solution[:-1], solution[-1], float(unexplained))


def data_url(colours: torch.Tensor) -> str:
    """A JPEG data URL of colours (height, width, 3) in -1 … 1; its longest side is `SIDE_PX`."""
    image = Image.fromarray(((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())
    scale = SIDE_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
