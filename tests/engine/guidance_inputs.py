"""Inputs of the equations of guidance, drawn at random, and bounds on their rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.engine.jobs import EPS32, EPS64

if TYPE_CHECKING:
    from collections.abc import Callable

Tensors: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"
PREDICTIONS = ("epsilon", "v_prediction", "sample")
PURE = settings(deadline=None, derandomize=True, max_examples=60)
SIDES = st.tuples(st.integers(5, 12), st.integers(5, 12))
SEEDS = st.integers(0, 2**16)
#: Rounding of 64 operations on float64 values of up to 16: normal numbers, times scales of up to 3.
ROUNDING64 = 64 * 16 * EPS64 / 2


def sum_rounding(terms: int, largest: float) -> float:
    """Bound on the difference of two float32 sums of the same products, in any order.

    Each is within `terms` roundings of EPS32 / 2 of its absolute sum, `largest` (Higham, 3.1).
    """
    return terms * EPS32 * largest


#: Products of the 9 x 9 blur, and operations around it.
BLUR_TERMS = 81 + 16


def output_for(
    kind: str, x0: torch.Tensor, noisy: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """The output of a UNet of that prediction type that predicts `x0`."""
    if kind == "sample":
        return x0
    eps = (noisy - alpha * x0) / sigma
    return eps if kind == "epsilon" else alpha * eps - sigma * x0


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1, 1)


def levels(*alphas: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One alpha and its sigma for each row."""
    return column(*alphas), column(*((1 - alpha**2) ** 0.5 for alpha in alphas))


def denoiser(generator: torch.Generator) -> Callable[[torch.Tensor], torch.Tensor]:
    """A nonlinear network that looks at each cell's neighbours."""
    weights = torch.randn(4, 4, 3, 3, generator=generator, dtype=torch.float64)
    return lambda noisy: torch.tanh(functional.conv2d(noisy, weights, padding=1))


def tensors(seed: int, rows: int, size: tuple[int, int]) -> tuple[torch.Generator, Tensors]:
    """Noisy latents, an output that fits no level, and where it is salient."""
    generator = torch.Generator().manual_seed(seed)
    noisy, output = (
        torch.randn(rows, 4, *size, generator=generator, dtype=torch.float64) for _ in "no"
    )
    salient = torch.rand(rows, 1, *size, generator=generator) > 0.5
    return generator, (noisy, output, salient.double())
