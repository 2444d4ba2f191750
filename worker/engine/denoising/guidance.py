"""The equations of Self-Attention Guidance, batched over rows. Knows no model and no device.

Hong et al., "Improving Sample Quality of Diffusion Models Using Self-Attention Guidance",
arXiv 2210.00939. A noisy latent in variance-preserving scale is z = alpha x0 + sigma eps, with
alpha^2 + sigma^2 = 1. Tensors are (rows, channels, height, width), scalars (rows, 1, 1, 1).
Unknown prediction types raise ValueError.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it

from worker.engine.device import device_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: What a UNet may predict.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
#: Blur of the paper's Stable Diffusion settings, in cells; its kernel is 9 x 9.
BLUR_SIGMA = 1.0
#: Radius of a kernel in sigmas.
_RADIUS = 4
#: A position is salient above the mean column sum, which is 1 by construction (section 4.2).
THRESHOLD = 1.0
#: Most numbers of the attention maps that exist at once, 128 MiB: a row of Stable Diffusion XL at
#: 1,024 px has 80 MiB in float32, at 2,048 px 16 times that.
_MAP_NUMBERS = 2**25
#: Smallest latent side that the usual blur can pad by reflection; below it there is no SAG.
MIN_SIDE = 5

_Scalar: TypeAlias = torch.Tensor | float


def classifier_free(
    unconditional: torch.Tensor, conditional: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Ho & Salimans, arXiv 2207.12598, equation 6, with diffusers' meaning of the scale."""
    return unconditional + scale * (conditional - unconditional)


def column_sums(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """How much attention each position receives: (rows, positions), float32, with mean 1.

    Equation 8: `query` and `key` are (rows, heads, positions, width); the attention map is summed
    over the queries and averaged over the heads. In half precision 0.5 to 1.6 % of all positions
    would cross the threshold. Only the maps of some heads exist at once.
    """
    heads, positions = query.shape[1:3]
    at_once = max(1, _MAP_NUMBERS // positions**2)
    pairs = (each.flatten(0, 1).split(at_once) for each in (query, key))
    sums = [
        (some.float() * scale @ keys.float().transpose(-1, -2)).softmax(-1).sum(1)
        for some, keys in zip(*pairs, strict=True)
    ]
    return torch.cat(sums).view(-1, heads, positions).mean(1)


def mask(
    sums: torch.Tensor,
    size: tuple[int, int],
    latent: tuple[int, int],
    threshold: _Scalar = THRESHOLD,
) -> torch.Tensor:
    """1 where a position is salient, equation 9: (rows, 1, *latent), by nearest neighbour.

    `sums` is (rows, positions), `size` height and width of the layer, `latent` of the latents;
    `threshold` a number, or one for each row, (rows, 1).
    """
    salient = (sums > threshold).float().reshape(-1, 1, *size)
    return F.interpolate(salient, latent)


def rescaled(guided: torch.Tensor, conditional: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """A `share` of the output, 0 to 1, gets the deviation of the conditional one.

    Lin et al., arXiv 2305.08891, equations 14 to 16; the deviation is over all of a row.
    """
    deviations = (each.std(dim=(1, 2, 3), keepdim=True) for each in (conditional, guided))
    of_conditional, of_guided = deviations
    return share * (guided * (of_conditional / of_guided)) + (1 - share) * guided


def blur(
    latents: torch.Tensor, sigma: float = BLUR_SIGMA, radius: int | None = None
) -> torch.Tensor:
    """Gaussian blur with reflected edges; `sigma` and `radius` of the kernel are in cells.

    Without a `radius` it is 4 sigma; it is at most as large as the smaller side can pad.
    """
    channels, side = latents.shape[1], min(latents.shape[-2:])
    radius = min(math.ceil(_RADIUS * sigma) if radius is None else radius, side - 1)
    kernel = _kernel(radius, sigma, latents.device, latents.dtype).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(latents, [radius] * 4, mode="reflect"), kernel, groups=channels)


def blur_rows(
    latents: torch.Tensor, sigmas: Sequence[float], radius: int | None = None
) -> torch.Tensor:
    """`blur` with a sigma for each row; equal ones side by side share a convolution."""
    runs = [(sigma, len(list(run))) for sigma, run in itertools.groupby(sigmas)]
    if len(runs) == 1:
        return blur(latents, sigmas[0], radius)
    parts = latents.split([rows for _, rows in runs])
    return torch.cat(
        [blur(part, sigma, radius) for part, (sigma, _) in zip(parts, runs, strict=True)]
    )


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


def degrade(  # noqa: PLR0913, PLR0917  # the terms of an equation
    prediction: str,
    noisy: torch.Tensor,
    output: torch.Tensor,
    salient: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    blurred: Callable[[torch.Tensor], torch.Tensor] = blur,
    clip: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The degraded input of equation 10, and the output there with which SAG has no effect.

    x0 is `blurred` where `salient` is 1, and the same noise is added again. SAG adds the difference
    between the expected output and the UNet's real one. The expected output belongs to the same
    noise and the blurred x0: for epsilon it is `output` itself.

    With a `clip` x0 is first clipped to -clip … clip, everywhere, as in the authors' code for
    pixel-space models.
    """
    match prediction:
        case "epsilon":
            bound = None if clip is None else alpha * clip
            change = _change(noisy - sigma * output, salient, blurred, bound)
            return noisy + change, output
        case "v_prediction":
            bound = None if clip is None else torch.full_like(alpha, clip)
            change = _change(alpha * noisy - sigma * output, salient, blurred, bound)
            return noisy + alpha * change, output - sigma * change
        case "sample":
            bound = None if clip is None else torch.full_like(alpha, clip)
            change = _change(output, salient, blurred, bound)
            return noisy + alpha * change, output + change
    raise ValueError(f"unknown prediction type {prediction!r}")


def _change(
    x0: torch.Tensor,
    salient: torch.Tensor,
    blurred: Callable[[torch.Tensor], torch.Tensor],
    bound: torch.Tensor | None,
) -> torch.Tensor:
    """What is added to x0, clipped at `bound`, to blur it where `salient` is 1."""
    if bound is None:
        return salient * (blurred(x0) - x0)
    clipped = x0.clamp(-bound, bound)
    return clipped - x0 + salient * (blurred(clipped) - clipped)


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


@lru_cache(maxsize=64)
def _kernel(radius: int, sigma: float, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    x = torch.arange(2 * radius + 1, dtype=torch.float32) - radius
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    weights = weights / weights.sum()
    return device_memory.to_device(torch.outer(weights, weights).to(dtype), device)
