"""The blur of x0: upstream's, for any side and any radius."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_sag import (
    pipeline_stable_diffusion_sag as upstream,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.engine.guidance_inputs import BLUR_TERMS, PURE, SEEDS, SIDES, sum_rounding, tensors
from worker.engine.denoising import guidance


@PURE
@given(seed=SEEDS, size=SIDES, sigma=st.floats(0.2, 12.0), radius=st.integers(1, 20))
def test_a_kernel_may_have_a_radius_of_its_own(
    seed: int, size: tuple[int, int], sigma: float, radius: int
) -> None:
    """Its weights are the Gaussian's within the radius, and sum to 1; the authors' is 15."""
    _, (latents, _, _) = tensors(seed, 1, size)
    reach = min(radius, min(size) - 1)
    x = torch.arange(-reach, reach + 1, dtype=torch.float64)
    line = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = functional.pad(latents, [reach] * 4, mode="reflect")
    expected = functional.conv2d(padded, kernel.expand(4, 1, -1, -1), groups=4)
    found = guidance.blur(latents, sigma, radius)
    # The kernel is computed in float32.
    largest = float(latents.abs().max())
    assert torch.allclose(found, expected, rtol=0, atol=sum_rounding(16, largest))


@PURE
@given(seed=SEEDS, size=SIDES, rows=st.integers(1, 3), channels=st.integers(1, 5))
def test_the_blur_is_upstreams(seed: int, size: tuple[int, int], rows: int, channels: int) -> None:
    """The blur equals upstream's, also at the edges, down to a side of five cells."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, channels, *size, generator=generator)
    expected = upstream.gaussian_blur_2d(latents, kernel_size=9, sigma=1.0)
    rounding = sum_rounding(BLUR_TERMS, float(latents.abs().max()))
    assert torch.allclose(guidance.blur(latents), expected, rtol=0, atol=rounding)
    assert min(size) >= guidance.MIN_SIDE


@pytest.mark.parametrize("side", [guidance.MIN_SIDE - 1, guidance.MIN_SIDE])
def test_the_least_side_is_the_least(side: int) -> None:
    """Below `MIN_SIDE` the kernel is cut to what the side can pad; from there on it is whole.

    So a constant stays one in both, and a single cell has 9 cells about it from that side on.
    """
    latents = torch.ones(1, 1, side, 9)
    rounding = sum_rounding(BLUR_TERMS, 1.0)
    assert torch.allclose(guidance.blur(latents), latents, rtol=0, atol=rounding)
    line = torch.zeros(1, 1, side, 19)
    line[..., 9] = 1
    cells = int((guidance.blur(line)[0, 0, 0] > 0).sum())
    assert cells == (9 if side >= guidance.MIN_SIDE else 7)
