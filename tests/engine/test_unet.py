"""The UNet as the engine calls it: compiled, in half precision; and the sliced decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
from peft.tuners.lora import LoraLayer
from torch._dynamo.utils import counters

from tests.engine.diffusers_alone import save_lora
from tests.engine.jobs import CLOSE_6_STEPS, EPS32, SPEC, Rounds, assert_close, job, latents_of
from worker.config.models import Lora
from worker.engine import safetensors_io
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loaded_model import LoadedModel
from worker.engine.loading import model_loader

if TYPE_CHECKING:
    from pathlib import Path

    from worker.engine.job import Job

STEPS = 6


@pytest.mark.slow
def test_a_compiled_unet_is_compiled_once_for_each_size(rounds: Rounds) -> None:
    """Calls of many numbers of rows, with and without SAG, make no more graphs than padded sizes.

    The latents are the same. Traced for real, and run by torch's eager backend, since compiling
    kernels takes minutes.
    """
    model = model_loader.load(SPEC, "cpu", "none")
    model.pipeline.unet.compile(dynamic=False, backend="eager")
    compiled = Rounds(model=LoadedModel(model.family, model.pipeline, "cpu", "none", compiled=True))
    counters.clear()
    for pictures in (1, 2, 3):
        for sag_scale in (0.75, 0.0):
            wanted = job(
                num_inference_steps=STEPS, num_images_per_prompt=pictures, sag_scale=sag_scale
            )
            ours, theirs = compiled.result(wanted), rounds.result(wanted)
            assert_close(latents_of(ours), latents_of(theirs), CLOSE_6_STEPS)
    # 2, 4 and 6 rows in the main pass, 1, 2 and 3 in the degraded one: padded to 1, 2, 4 and 8.
    assert counters["stats"]["unique_graphs"] <= 4
    assert not counters["graph_break"]


@pytest.mark.slow
def test_lora_scales_and_text_lengths_share_a_graph(tmp_path: Path) -> None:
    """A compiled UNet has one graph for all LoRA scales, and one for all lengths but the usual.

    The latents are those of the UNet that is not compiled. Traced as above.
    """
    spec = SPEC.model_copy(update={"lora": (Lora(path=save_lora(tmp_path, 1), scale=0.8),)})
    usual, model = Rounds(spec), model_loader.load(spec, "cpu", "none")
    model.pipeline.unet.compile(dynamic=False, backend="eager")
    compiled = Rounds(model=replace(model, compiled=True))

    def graphs(*wanted: Job) -> int:
        counters.clear()
        for each in wanted:
            assert_close(latents_of(compiled.result(each)), latents_of(usual.result(each)))
        assert not counters["graph_break"]
        return counters["stats"]["unique_graphs"]

    # Each for two rows and for one, as in the main and in the degraded pass.
    assert graphs(job()) == 2
    assert graphs(*(job(lora_scale=scale) for scale in (0.0, 0.3, 0.7, 1.0, 2.0))) == 0
    assert graphs(*(job(**embeddings(tokens)) for tokens in (2, 8, 31, 33, 77))) == 2
    assert graphs(job(**embeddings(40), lora_scale=0.4), job()) == 0


def test_compiling_is_no_step(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of each shape counts as loading, which has a limit of its own."""
    compiled = Rounds(model=replace(rounds.runner.model, compiled=True), max_batch_rows=2)
    unet, seen = rounds.pipe.unet, list[bool]()
    forward = unet.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(compiled.runners.loading is not None)
        return forward(*args, **kwargs)

    monkeypatch.setattr(unet, "forward", watched)
    assert compiled.runner.unet.is_measured
    assert seen == [True]
    seen.clear()
    for _ in range(2):
        compiled.result(job(height=32, width=32))
    # Two rows in the main pass, one in the degraded one; three steps of each job.
    assert seen == [True, True, *[False] * 10]
    assert compiled.runners.loading is None


def test_scales_are_tensors_and_lengths_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled UNet gets LoRA scales as tensors, and unusual lengths of prompts as free.

    The latents are the same, and so are the adapter's scales afterwards.
    """
    spec = SPEC.model_copy(update={"lora": (Lora(path=save_lora(tmp_path, 1), scale=0.8),)})
    usual = Rounds(spec)
    unet = usual.pipe.unet
    compiled = Rounds(model=replace(usual.runner.model, compiled=True))
    layers = [each.scaling for each in unet.modules() if isinstance(each, LoraLayer)]
    forward, seen = unet.forward, list[tuple[Any, bool]]()

    def watched(*args: Any, encoder_hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        is_free = hasattr(encoder_hidden_states, "_dynamo_weak_dynamic_indices")
        seen.append((layers[0]["lora0"], is_free))
        return forward(*args, encoder_hidden_states=encoder_hidden_states, **kwargs)

    for wanted in (job(lora_scale=0.3), job(), job(lora_scale=0.5, **embeddings(7))):
        expected = latents_of(usual.result(wanted))
        with monkeypatch.context() as patch:
            patch.setattr(unet, "forward", watched)
            assert_close(latents_of(compiled.result(wanted)), expected)
        scale = 0.8 * (1.0 if wanted.lora_scale is None else wanted.lora_scale)
        assert all(isinstance(found, torch.Tensor) for found, _ in seen)
        (applied,) = {float(found) for found, _ in seen[-4:]}
        assert applied == pytest.approx(scale, rel=2 * EPS32)
        assert {is_free for _, is_free in seen[-4:]} == {bool(wanted.prompt_embeds)}
        assert [each["lora0"] for each in layers] == [0.8] * len(layers)


def embeddings(tokens: int) -> dict[str, Any]:
    """The fields of a job with random text embeddings, (1, tokens, width), for both prompts."""
    generator = torch.Generator().manual_seed(tokens)
    drawn = [torch.randn(1, tokens, 128, generator=generator) for _ in range(2)]
    names = "prompt_embeds", "negative_prompt_embeds"
    files = [safetensors.torch.save({name: each}) for name, each in zip(names, drawn, strict=True)]
    return {"prompts": (), **dict(zip(names, files, strict=True))}


def test_calls_of_a_compiled_unet_are_padded(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `compiled`, calls have a padded number of rows and capture all of them; same latents."""
    model = LoadedModel(StableDiffusion(), rounds.pipe, "cpu", "none", compiled=True)
    compiled, shapes = Rounds(model=model), set[tuple[int, int]]()
    call = compiled.runner.unet._processor
    usual = rounds.pipe.unet.forward

    def forward(noisy: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.add((len(noisy), call.rows))
        return usual(noisy, *args, **kwargs)

    wanted = [job(num_images_per_prompt=3, sag_scale=scale) for scale in (0.75, 0.0)]
    plain = [latents_of(rounds.result(each)) for each in wanted]
    monkeypatch.setattr(rounds.pipe.unet, "forward", forward)
    for each, expected in zip(wanted, plain, strict=True):
        assert_close(latents_of(compiled.result(each)), expected)
    # 6 rows in the main pass, 3 in the degraded one.
    assert shapes == {(8, 8), (4, 4)}


def test_slices_and_tiles_make_the_same_picture(rounds: Rounds) -> None:
    """The settings reach the autoencoder, and a sliced decode changes no pixel by more than 1."""
    wanted = job(num_images_per_prompt=2, output_type="png")
    sliced = Rounds(SPEC.model_copy(update={"vae_slicing": True, "vae_tiling": True}))
    assert sliced.pipe.vae.use_slicing
    assert sliced.pipe.vae.use_tiling
    assert not rounds.pipe.vae.use_slicing
    pairs = zip(sliced.result(wanted).images, rounds.result(wanted).images, strict=True)
    for ours, whole in pairs:
        apart_by = np.asarray(ours.pixels, np.int16) - np.asarray(whole.pixels, np.int16)
        assert np.abs(apart_by).max() <= 1


def test_half_precision_is_near(rounds: Rounds, half: Rounds) -> None:
    """In bfloat16 the engine makes finite latents within a tenth of the float32 ones.

    A bfloat16 has eight bits: a UNet call is off by about 1 %, which 6 steps of guidance magnify.
    Both begin with the same noise: before torch 2.13 a seed gives other noise in half precision.
    """
    assert half.pipe.unet.dtype == torch.bfloat16
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(5))
    wanted = job(num_inference_steps=STEPS, latents=safetensors_io.write(noise))
    made, whole = latents_of(half.result(wanted)), latents_of(rounds.result(wanted))
    assert float((made - whole).abs().mean()) < 0.1 * float(whole.abs().mean())
