"""The prototype of PAG and SEG: its rows in company of SAG's, against diffusers and the paper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from diffusers.models.attention_processor import (
    AttnProcessor2_0,
    PAGCFGIdentitySelfAttnProcessor2_0,
)
from peft import LoraConfig

from benchmarks.engine_calls import planned
from benchmarks.second_guidance.perturbed_attention import (
    PerturbedRows,
    blurred,
    layers,
    perturb,
)
from tests.engine import small_models
from worker.config.models import SHIPPED_MODEL
from worker.engine.sag_attention import SagAttnProcessor, capture_attention

if TYPE_CHECKING:
    from pathlib import Path

#: The rows of the call: SAG's, PAG's first three, SEG's.
SAG, PAG, SEG = range(1), range(1, 4), range(4, 5)


def _unet(kind: str, folder: Path) -> Any:
    match kind:
        case "xl":
            path = small_models.save_xl(folder)
            return diffusers.UNet2DConditionModel.from_pretrained(path / "unet")
        case "pixels":
            path = small_models.save_pixels(folder)
            return diffusers.UNet2DModel.from_pretrained(path / "unet")
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        SHIPPED_MODEL / "unet", torch_dtype=torch.float32
    )
    if kind == "lora":
        torch.manual_seed(2)
        names = ["to_q", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=names))
    return unet


def _inputs(unet: Any, rows: int) -> dict[str, Any]:
    torch.manual_seed(1)
    config = unet.config
    given: dict[str, Any] = {
        "sample": torch.randn(rows, config.in_channels, 16, 24),
        "timestep": torch.linspace(3, 900, rows).long(),
    }
    if isinstance(unet, diffusers.UNet2DModel):
        return given
    given["encoder_hidden_states"] = torch.randn(rows, 7, config.cross_attention_dim)
    if config.addition_embed_type is not None:
        texts = torch.randn(rows, small_models.POOLED)
        given["added_cond_kwargs"] = {"text_embeds": texts, "time_ids": torch.ones(rows, 6)}
    return given


def _of(given: dict[str, Any], rows: range) -> dict[str, Any]:
    return {
        name: _of(each, rows) if isinstance(each, dict) else each[rows.start : rows.stop]
        for name, each in given.items()
    }


@pytest.mark.parametrize("kind", ["sd", "lora", "xl", "pixels"])
@torch.no_grad()
def test_pag_in_company_is_diffusers(kind: str, tmp_path: Path) -> None:
    """A row with PAG, in a call with rows of SAG and SEG, is that of diffusers' own processor.

    The other rows are those of a call without PAG, and SAG reads the same attention.
    """
    unet = _unet(kind, tmp_path).eval()
    names, given, listener = layers(unet), _inputs(unet, 5), SagAttnProcessor()
    with capture_attention(unet, listener, len(SAG), names[0]):
        plain, sums = unet(**given).sample, listener.sums
    rows = PerturbedRows(identity=PAG[-1:], blurred=SEG)
    with perturb(unet, names, rows), capture_attention(unet, listener, len(SAG), names[0]):
        output, sums_in_company = unet(**given).sample, listener.sums
    for name in names:
        unet.get_submodule(name).processor = PAGCFGIdentitySelfAttnProcessor2_0()
    theirs = unet(**_of(given, PAG)).sample
    torch.testing.assert_close(output[1:4], theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(output[:3], plain[:3], atol=1e-5, rtol=0)
    torch.testing.assert_close(sums_in_company, sums)
    assert (output[3:] - plain[3:]).abs().amax((1, 2, 3)).gt(1e-5).all()


@pytest.mark.slow  # 20 calls of three rows, and the pipeline's
@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
@torch.no_grad()
def test_a_picture_with_pag_is_diffusers(guidance_scale: float) -> None:
    """20 steps with the hooks and the equation of docs/adr/0009 give the pipeline's picture."""
    pipeline = diffusers.StableDiffusionPAGPipeline.from_pretrained(SHIPPED_MODEL)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    asked = {"guidance_scale": guidance_scale, "num_inference_steps": 20, "output_type": "latent"}
    theirs = pipeline("a large red star", pag_scale=2.0, latents=noise, **asked).images
    with_prompt, without = pipeline.encode_prompt("a large red star", "cpu", 1, True)
    guided = guidance_scale > 1
    embeds = torch.cat([without, with_prompt, with_prompt][not guided :])
    unet, scheduler = pipeline.unet, pipeline.scheduler
    for name in layers(unet):
        unet.get_submodule(name).processor = AttnProcessor2_0()
    scheduler.set_timesteps(20)
    rows = PerturbedRows(identity=range(len(embeds))[-1:])
    with perturb(unet, layers(unet), rows):
        for timestep in scheduler.timesteps:
            inputs = noise.expand(len(embeds), -1, -1, -1)
            *empty, main, perturbed = unet(inputs, timestep, embeds).sample[:, None]
            output = main + 2.0 * (main - perturbed)
            if guided:
                output += (guidance_scale - 1) * (main - empty[0])
            noise = scheduler.step(output, timestep, noise).prev_sample
    torch.testing.assert_close(noise, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_hooks_are_removed() -> None:
    """After the block, and after an error in it, the layers attend as before."""
    unet = _unet("sd", SHIPPED_MODEL)
    given = _inputs(unet, 2)
    before = unet(**given).sample
    with (
        pytest.raises(RuntimeError),
        perturb(unet, layers(unet), PerturbedRows(range(1), range(1, 2))),
    ):
        raise RuntimeError
    assert torch.equal(unet(**given).sample, before)


class _BlurredMap(AttnProcessor2_0):
    """SEG spelt out: the map before its softmax, blurred over the queries."""

    def __init__(self, size: tuple[int, int], sigma: float) -> None:
        super().__init__()
        self._size, self._sigma = size, sigma

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        query, key, value = (
            each(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (attn.to_q, attn.to_k, attn.to_v)
        )
        scores = query @ key.transpose(-1, -2) * attn.scale
        smooth = torch.stack([blurred(each, self._size, self._sigma) for each in scores])
        out = (smooth.softmax(-1) @ value).transpose(1, 2).flatten(2)
        projected: torch.Tensor = attn.to_out[0](out)
        return projected


@pytest.mark.parametrize("sigma", [0.7, 3.0, math.inf])
@torch.no_grad()
def test_seg_blurs_the_attention_map(sigma: float) -> None:
    """Blurred queries are a map blurred over its queries, in layers that are not square, too."""
    unet = _unet("sd", SHIPPED_MODEL)
    given, names = _inputs(unet, 2), layers(unet)
    with perturb(unet, names, PerturbedRows(blurred=range(1, 2), sigma=sigma)):
        output = unet(**given).sample
    for name in names:
        unet.get_submodule(name).processor = _BlurredMap((8, 12), sigma)
    torch.testing.assert_close(
        output[1:], unet(**_of(given, range(1, 2))).sample, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("sigma", [0.5, 1.0, 10.0])
def test_segs_blur_is_the_authors(sigma: float) -> None:
    """The blur is that of SEG's authors, which diffusers has in the branch for an infinite sigma.

    Its branches are exchanged: each finite sigma gives the mean, as an infinite one should.
    """
    queries = torch.randn(2, 64, 12, generator=torch.Generator().manual_seed(0))
    kernel = 2 * (math.ceil(6 * sigma) // 2) + 1
    theirs = _gaussian_blur_2d(queries.clone(), kernel, sigma, sigma_threshold_inf=0.0)
    torch.testing.assert_close(blurred(queries, (8, 8), sigma), theirs)
    theirs = _gaussian_blur_2d(queries.clone(), kernel, sigma, sigma_threshold_inf=9999.0)
    torch.testing.assert_close(blurred(queries, (8, 8), math.inf), theirs)


def test_the_scheduler_hides_sags_second_call() -> None:
    """Alone SAG takes twice the calls of PAG; where a call can't take all rows, about as many."""
    alone = [len(planned([name], 25, 16)) for name in ("none", "sag", "pag")]
    assert alone == [25, 50, 25]
    many = [len(planned([name] * 16, 25, 16)) for name in ("none", "sag", "pag")]
    assert many == [51, 99, 97]
