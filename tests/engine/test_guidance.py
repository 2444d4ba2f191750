"""The equations of guidance against the paper's x0 form and upstream's code."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import torch
from diffusers.pipelines.deprecated.stable_diffusion_sag import (
    pipeline_stable_diffusion_sag as upstream,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.guidance_inputs import (
    BLUR_TERMS,
    PREDICTIONS,
    PURE,
    ROUNDING64,
    SEEDS,
    SIDES,
    column,
    denoiser,
    levels,
    output_for,
    sum_rounding,
    tensors,
)
from worker.engine import guidance


@PURE
@given(
    seed=SEEDS,
    size=SIDES,
    alphas=st.lists(st.floats(0.01, 0.9999), min_size=1, max_size=3),
    scale=st.floats(0.1, 3.0),
)
def test_the_guidance_is_the_papers(
    seed: int, size: tuple[int, int], alphas: list[float], scale: float
) -> None:
    """In all prediction types a network gets one degraded input and g (x0_blurred - D(x_deg)).

    The degraded input is the blurred x0 with the same noise; each row has its own noise level.
    """
    generator, (noisy, _, salient) = tensors(seed, len(alphas), size)
    network, (alpha, sigma) = denoiser(generator), levels(*alphas)
    x0 = network(noisy)
    blurred = x0 + salient * (guidance.blur(x0) - x0)
    x_deg = alpha * blurred + (noisy - alpha * x0)
    expected = x0 + scale * (blurred - network(x_deg))
    for kind in PREDICTIONS:
        output = output_for(kind, x0, noisy, alpha, sigma)
        degraded, blind = guidance.degrade(kind, noisy, output, salient, alpha, sigma)
        assert torch.allclose(degraded, x_deg, rtol=0, atol=ROUNDING64)
        there = output_for(kind, network(degraded), degraded, alpha, sigma)
        guided = output + scale * (blind - there)
        found = guidance.scaled_x0(kind, noisy, guided, alpha, sigma) / alpha
        # x0 is noise divided by alpha; 1.2e-14 / alpha was measured.
        assert float((found - expected).abs().max()) < ROUNDING64 / min(alphas)


@PURE
@given(
    seed=SEEDS,
    size=SIDES,
    alphas=st.lists(st.floats(0.01, 0.9999), min_size=1, max_size=3),
    clip=st.floats(0.1, 2.0),
)
def test_a_clipped_x0_is_blurred(
    seed: int, size: tuple[int, int], alphas: list[float], clip: float
) -> None:
    """As in the authors' code for pixels x0 is clipped before the blur; the noise stays.

    The expected output belongs to that noise and the clipped, blurred x0.
    """
    generator, (noisy, _, salient) = tensors(seed, len(alphas), size)
    network, (alpha, sigma) = denoiser(generator), levels(*alphas)
    x0 = network(noisy)
    clipped = x0.clamp(-clip, clip)
    blurred = (1 - salient) * clipped + salient * guidance.blur(clipped)
    x_deg = alpha * blurred + (noisy - alpha * x0)
    for kind in PREDICTIONS:
        output = output_for(kind, x0, noisy, alpha, sigma)
        degraded, blind = guidance.degrade(kind, noisy, output, salient, alpha, sigma, clip=clip)
        assert torch.allclose(degraded, x_deg, rtol=0, atol=ROUNDING64)
        expected = output_for(kind, blurred, degraded, alpha, sigma)
        # Epsilon divides by sigma.
        assert float((blind - expected).abs().max()) < ROUNDING64 / float(sigma.min())


@PURE
@given(seed=SEEDS, size=SIDES, alpha=st.floats(0.0, 0.9999))
def test_a_network_blind_to_the_blur_gets_no_guidance(
    seed: int, size: tuple[int, int], alpha: float
) -> None:
    """The expected output at the degraded input stands for the same noise and the blurred x0.

    Where nothing is salient, input and output do not change.
    """
    _, (noisy, x0, salient) = tensors(seed, 1, size)
    at = levels(alpha)
    blurred = x0 + salient * (guidance.blur(x0) - x0)
    for kind in PREDICTIONS:
        output = output_for(kind, x0, noisy, *at)
        degraded, blind = guidance.degrade(kind, noisy, output, salient, *at)
        # Epsilon divides by sigma.
        rounding = ROUNDING64 / float(at[1])
        assert torch.allclose(
            blind, output_for(kind, blurred, degraded, *at), rtol=0, atol=rounding
        )
        same = guidance.degrade(kind, noisy, output, torch.zeros_like(salient), *at)
        assert torch.equal(same[0], noisy)
        assert torch.equal(same[1], output)


@PURE
@given(
    seed=SEEDS,
    latent=st.tuples(st.integers(5, 16), st.integers(5, 16)),
    step=st.integers(0, 999),
)
def test_the_degraded_latents_are_upstreams(seed: int, latent: tuple[int, int], step: int) -> None:
    """The degraded input is what upstream's methods compute from the same attention map."""
    size = (latent[0] + 1) // 2, (latent[1] + 1) // 2
    generator = torch.Generator().manual_seed(seed)
    noisy, output = (torch.randn(2, 4, *latent, generator=generator) for _ in "no")
    tokens = size[0] * size[1]
    scores = torch.randn(2, 3, tokens, tokens, generator=generator)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_end=0.012)
    pipe = SimpleNamespace(
        scheduler=scheduler, unet=SimpleNamespace(config=SimpleNamespace(attention_head_dim=3))
    )
    theirs = upstream.StableDiffusionSAGPipeline
    time = torch.tensor(step)
    expected = theirs.sag_masking(
        pipe,
        theirs.pred_x0(pipe, noisy, output, time),
        scores.softmax(-1).flatten(0, 1),
        size,
        time,
        output,
    )
    salient = guidance.mask(scores.softmax(-1).mean(1).sum(1), size, latent)
    square = scheduler.alphas_cumprod[step]
    degraded, _ = guidance.degrade(
        "epsilon", noisy, output, salient, square**0.5, (1 - square) ** 0.5
    )
    # Upstream divides by alpha and multiplies by it again, which rounds but does not magnify.
    largest = float(noisy.abs().max() + 2 * output.abs().max())
    assert float((degraded - expected).abs().max()) < sum_rounding(BLUR_TERMS, largest)


@PURE
@given(seed=SEEDS, size=SIDES)
def test_all_noise_gives_finite_numbers(seed: int, size: tuple[int, int]) -> None:
    """At alpha = 0 (zero terminal SNR) nothing is divided by alpha, and the blur still guides.

    The input holds no picture to degrade and does not change.
    """
    _, (noisy, output, salient) = tensors(seed, 1, size)
    alpha, sigma = column(0.0), column(1.0)
    for kind in PREDICTIONS:
        degraded, blind = guidance.degrade(kind, noisy, output, salient, alpha, sigma)
        x0_scaled = guidance.scaled_x0(kind, noisy, output, alpha, sigma)
        assert torch.isfinite(degraded).all()
        assert torch.isfinite(blind).all()
        assert torch.isfinite(x0_scaled).all()
        if kind != "epsilon":
            x0, factor = (output, 1) if kind == "sample" else (-output, -1)
            assert torch.equal(degraded, noisy)
            blurred = x0 + salient * (guidance.blur(x0) - x0)
            assert torch.allclose(factor * blind, blurred, rtol=0, atol=ROUNDING64)
            assert not torch.any(x0_scaled)
        if kind != "v_prediction":
            as_v = guidance.convert(output, noisy, 0.0, 1.0, (kind, "v_prediction"))
            assert torch.equal(as_v, -output if kind == "sample" else 0 * output)


@PURE
@given(seed=SEEDS, scales=st.lists(st.floats(0, 20), min_size=1, max_size=4))
def test_guidance_by_the_prompt_has_diffusers_scale(seed: int, scales: list[float]) -> None:
    """Scale 0 gives the unconditional output, 1 the conditional one; each row has its own scale."""
    generator = torch.Generator().manual_seed(seed)
    without, with_prompt = (
        torch.randn(len(scales), 4, 5, 5, generator=generator, dtype=torch.float64) for _ in "ab"
    )
    found = guidance.classifier_free(without, with_prompt, column(*scales))
    for row, scale in enumerate(scales):
        expected = (1 - scale) * without[row] + scale * with_prompt[row]
        assert torch.allclose(found[row], expected, rtol=0, atol=ROUNDING64)
