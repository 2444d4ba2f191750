"""The equations of Self-Attention Guidance, batched over rows. Knows no model and no device.

Hong et al., "Improving Sample Quality of Diffusion Models Using Self-Attention Guidance",
arXiv 2210.00939. A noisy latent in variance-preserving scale is z = alpha x0 + sigma eps, with
alpha^2 + sigma^2 = 1. Tensors are (rows, channels, height, width), scalars (rows, 1, 1, 1).
Unknown prediction types raise ValueError.
"""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it

#: What a UNet may predict.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
#: Blur of the paper's Stable Diffusion settings: side in cells, sigma in cells.
KERNEL, BLUR_SIGMA = 9, 1.0
#: A position is salient above the mean column sum, which is 1 by construction (section 4.2).
THRESHOLD = 1.0
#: Smallest latent side that the blur can pad by reflection; below it there is no SAG.
MIN_SIDE = KERNEL // 2 + 1

_Scalar: TypeAlias = torch.Tensor | float


def classifier_free(
    unconditional: torch.Tensor, conditional: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Ho & Salimans, arXiv 2207.12598, equation 6, with diffusers' meaning of the scale."""
    return unconditional + scale * (conditional - unconditional)


def column_sums(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """How much attention each position receives: (rows, positions), float32, with mean 1.

    Equation 8: `query` and `key` are (rows, heads, positions, width); the attention map is averaged
    over the heads and summed over the queries. In half precision 0.5 to 1.6 % of all positions
    would cross the threshold.
    """
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    return scores.softmax(-1).mean(1).sum(1)


def mask(sums: torch.Tensor, size: tuple[int, int], latent: tuple[int, int]) -> torch.Tensor:
    """1 where a position is salient, equation 9: (rows, 1, *latent), by nearest neighbour.

    `sums` is (rows, positions), `size` height and width of the mid block, `latent` of the latents.
    """
    salient = (sums > THRESHOLD).float().reshape(-1, 1, *size)
    return F.interpolate(salient, latent)


def blur(latents: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with reflected edges; both sides must be at least `MIN_SIDE`."""
    channels = latents.shape[1]
    kernel = _kernel(latents.device, latents.dtype).expand(channels, 1, KERNEL, KERNEL)
    return F.conv2d(F.pad(latents, [KERNEL // 2] * 4, mode="reflect"), kernel, groups=channels)


def scaled_x0(
    prediction: str, noisy: torch.Tensor, output: torch.Tensor, alpha: _Scalar, sigma: _Scalar
) -> torch.Tensor:
    """`alpha x0` from a UNet's `output` at input `noisy`: finite at alpha = 0."""
    match prediction:
        case "epsilon":
            return noisy - sigma * output
        case "v_prediction":
            return alpha * (alpha * noisy - sigma * output)
        case "sample":
            return alpha * output
    raise ValueError(f"unknown prediction type {prediction!r}")


def degrade(
    prediction: str,
    noisy: torch.Tensor,
    output: torch.Tensor,
    salient: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The degraded input of equation 10, and the output there with which SAG has no effect.

    x0 is blurred where `salient` is 1, and the same noise is added again. SAG adds the difference
    between the expected output and the UNet's real one. The expected output belongs to the same
    noise and the blurred x0: for epsilon it is `output` itself.
    """
    match prediction:
        case "epsilon":
            y = noisy - sigma * output
            return noisy + salient * (blur(y) - y), output
        case "v_prediction":
            x0 = alpha * noisy - sigma * output
            change = salient * (blur(x0) - x0)
            return noisy + alpha * change, output - sigma * change
        case "sample":
            change = salient * (blur(output) - output)
            return noisy + alpha * change, output + change
    raise ValueError(f"unknown prediction type {prediction!r}")


def convert(
    output: torch.Tensor,
    noisy: torch.Tensor,
    alpha: float,
    sigma: float,
    predictions: tuple[str, str],
) -> torch.Tensor:
    """Convert from `predictions[0]` to `predictions[1]`, the same or v, for one x0."""
    match predictions:
        case (old, new) if old == new:
            return output
        case ("sample", "v_prediction"):
            return (alpha * noisy - output) / sigma
        case ("epsilon", "v_prediction"):
            # At alpha = 0 the latent is all noise and v is -x0, which epsilon does not determine.
            return (output - sigma * noisy) / alpha if alpha > 0 else torch.zeros_like(output)
    raise ValueError(f"can't convert {predictions[0]} to {predictions[1]}")


@cache
def _kernel(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    x = torch.arange(KERNEL, dtype=torch.float32) - KERNEL // 2
    weights = torch.exp(-0.5 * (x / BLUR_SIGMA) ** 2)
    weights = weights / weights.sum()
    return torch.outer(weights, weights).to(device=device, dtype=dtype)
