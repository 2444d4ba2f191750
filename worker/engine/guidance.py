"""The equations of Self-Attention Guidance, batched over rows; no model, no device of their own.

Hong et al., "Improving Sample Quality of Diffusion Models Using Self-Attention Guidance",
arXiv 2210.00939. A noisy latent in variance-preserving scale is z = alpha x0 + sigma eps, with
alpha^2 + sigma^2 = 1. Tensors are (rows, channels, height, width), scalars (rows, 1, 1, 1).
"""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it

#: What a network may predict.
KINDS = ("epsilon", "v_prediction", "sample")
#: Blur of the paper's Stable Diffusion settings.
KERNEL, BLUR_SIGMA = 9, 1.0
#: A token is salient above the mean column sum, which is 1 by construction (section 4.2).
THRESHOLD = 1.0
_Scalar: TypeAlias = torch.Tensor | float
#: Smallest latent side that the blur can pad by reflection; below it there is no guidance.
LEAST_SIDE = KERNEL // 2 + 1


def classifier_free(
    unconditional: torch.Tensor, conditional: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Ho & Salimans, arXiv 2207.12598, equation 6, with diffusers' meaning of the scale."""
    return unconditional + scale * (conditional - unconditional)


def column_sums(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """How much attention each token gets: (rows, tokens), float32, with mean 1.

    Equation 8: `query` and `key` are (rows, heads, tokens, width); the mean over heads, summed over
    the queries. In half precision the sums would cross the threshold in 0.5 to 1.6 % of all tokens.
    """
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    return scores.softmax(-1).mean(1).sum(1)


def mask(sums: torch.Tensor, size: tuple[int, int], latent: tuple[int, int]) -> torch.Tensor:
    """1 where a token is salient, equation 9: (rows, 1, *latent), from the mid block's `size`."""
    salient = (sums > THRESHOLD).float().reshape(-1, 1, *size)
    return F.interpolate(salient, latent)


def blur(latents: torch.Tensor) -> torch.Tensor:
    """Gaussian blur, edges reflected; both sides must be at least `LEAST_SIDE`."""
    channels = latents.shape[1]
    kernel = _kernel(latents.device, latents.dtype).expand(channels, 1, KERNEL, KERNEL)
    return F.conv2d(F.pad(latents, [KERNEL // 2] * 4, mode="reflect"), kernel, groups=channels)


def clean(
    kind: str, noisy: torch.Tensor, output: torch.Tensor, alpha: _Scalar, sigma: _Scalar
) -> torch.Tensor:
    """The x0 that a network's `output` stands for, times alpha; divides by nothing."""
    match kind:
        case "epsilon":
            return noisy - sigma * output
        case "v_prediction":
            return alpha * (alpha * noisy - sigma * output)
        case "sample":
            return alpha * output
    raise ValueError(f"unknown prediction type {kind!r}")


def degrade(
    kind: str,
    noisy: torch.Tensor,
    output: torch.Tensor,
    salient: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The degraded input of equation 10, and the output that a network blind to it would give.

    x0 is blurred where it is salient and gets the same noise back. Against a network's real
    output there, that second value is the guidance: for epsilon it is the old output, for v and
    sample that which belongs to the same noise and the blurred x0.
    """
    match kind:
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
    raise ValueError(f"unknown prediction type {kind!r}")


def convert(
    output: torch.Tensor, noisy: torch.Tensor, alpha: float, sigma: float, kinds: tuple[str, str]
) -> torch.Tensor:
    """A network's output of the first kind, as the same x0 would be told by the second."""
    match kinds:
        case (old, new) if old == new:
            return output
        case ("sample", "v_prediction"):
            return (alpha * noisy - output) / sigma
        case ("epsilon", "v_prediction"):
            # At alpha = 0 the latent is all noise and v is -x0, which epsilon can't tell: 0 then.
            return (output - sigma * noisy) / alpha if alpha > 0 else torch.zeros_like(output)
    raise ValueError(f"no way from {kinds[0]} to {kinds[1]}")


@cache
def _kernel(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    x = torch.arange(KERNEL, dtype=torch.float32) - KERNEL // 2
    weights = torch.exp(-0.5 * (x / BLUR_SIGMA) ** 2)
    weights = weights / weights.sum()
    return torch.outer(weights, weights).to(device=device, dtype=dtype)
