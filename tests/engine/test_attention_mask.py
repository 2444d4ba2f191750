"""The mask of what is blurred: column sums of the attention map, at the latents' size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.pipelines.deprecated.stable_diffusion_sag import (
    pipeline_stable_diffusion_sag as upstream,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.engine.guidance_inputs import PURE, ROUNDING64, SEEDS, sum_rounding
from tests.engine.jobs import EPS32
from worker.engine import guidance
from worker.engine.sag_attention import SagAttnProcessor


@PURE
@given(
    seed=SEEDS,
    rows=st.integers(1, 3),
    heads=st.integers(1, 4),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_column_sums_are_those_of_upstreams_map(
    seed: int, rows: int, heads: int, size: tuple[int, int]
) -> None:
    """The column sums equal those of the full map as upstream stores it; their mean is 1.

    Everything is float64 but the sums: their scores of 4 products, of up to 10 together, round by
    50 x EPS32 / 2, softmax doubles that, and it and the sums have up to 36 terms and 4 heads each.
    """
    torch.manual_seed(seed)
    attn = Attention(query_dim=8, heads=heads, dim_head=4).double()
    tokens = torch.randn(rows, size[0] * size[1], 8, dtype=torch.float64)
    store = upstream.CrossAttnStoreProcessor()
    with torch.no_grad():
        output = store(attn, tokens)
        processor = SagAttnProcessor()
        processor.rows = rows
        assert torch.allclose(processor(attn, tokens), output, rtol=0, atol=ROUNDING64)
    probabilities: Any = store.attention_probs
    plain = probabilities.reshape(rows, heads, *probabilities.shape[1:]).mean(1).sum(1)
    assert processor.sums is not None
    assert torch.allclose(processor.sums.double(), plain, rtol=100 * EPS32, atol=0)
    means = processor.sums.mean(-1)
    assert torch.allclose(means, torch.ones(rows), rtol=100 * EPS32, atol=0)


def test_column_sums_of_some_heads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few maps exist at once, each row has the same sums."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(3, 4, 12, 8, generator=generator) for _ in "qk")
    whole = guidance.column_sums(query, key, 0.35)
    for at_once in (1, 5, 7):
        monkeypatch.setattr(guidance, "_MAP_NUMBERS", at_once * 12**2)
        sums = guidance.column_sums(query, key, 0.35)
        assert torch.allclose(sums, whole, rtol=0, atol=sum_rounding(4 * 12, 1.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_column_sums_of_halves_are_whole(dtype: torch.dtype) -> None:
    """Half-precision queries and keys are summed in float32, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 20, 8, generator=generator).to(dtype) for _ in "qk")
    sums = guidance.column_sums(query, key, 0.35)
    assert sums.dtype == torch.float32
    assert torch.equal(sums, guidance.column_sums(query.float(), key.float(), 0.35))
    # All in half precision it would differ.
    rough = (query @ key.transpose(-1, -2) * 0.35).softmax(-1).mean(1).sum(1)
    assert not torch.equal(sums, rough.float())


@pytest.mark.parametrize(
    ("size", "latent"), [((5, 6), (9, 12)), ((1, 1), (5, 7)), ((4, 4), (8, 8)), ((3, 8), (6, 15))]
)
def test_a_mask_is_resized_to_the_nearest(size: tuple[int, int], latent: tuple[int, int]) -> None:
    """A cell of the latents is salient where its token is: above 1, not at 1."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.rand(3, size[0] * size[1], generator=generator) + 0.5
    sums[0, 0] = 1.0
    found = guidance.mask(sums, size, latent)
    assert found.shape == (3, 1, *latent)
    for row in range(3):
        for y in range(latent[0]):
            for x in range(latent[1]):
                token = y * size[0] // latent[0] * size[1] + x * size[1] // latent[1]
                assert bool(found[row, 0, y, x]) == bool(sums[row, token] > 1)
    upstreams = (sums > 1.0).reshape(3, *size).unsqueeze(1).repeat(1, 4, 1, 1).type(sums.dtype)
    assert torch.equal(functional.interpolate(upstreams, latent), found.expand(-1, 4, -1, -1))
    assert 0 < float(found.mean()) < 1 or size == (1, 1)
