"""The UNet as the engine calls it: compiled, in half precision; and the sliced decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from tests.engine.jobs import CLOSE_6_STEPS, SPEC, Rounds, assert_close, job, latents_of
from worker.engine import model_loader

STEPS = 6


@pytest.mark.slow
def test_a_compiled_unet_is_compiled_once_for_each_size(rounds: Rounds) -> None:
    """Calls of many numbers of rows, with and without SAG, make no more graphs than padded sizes.

    The latents are the same. Traced for real, and run by torch's eager backend, since compiling
    kernels takes minutes.
    """
    model = model_loader.load(SPEC, "cpu", "none")
    model.pipeline.unet.compile(dynamic=False, backend="eager")
    compiled = Rounds(model=model_loader.LoadedModel(model.pipeline, "cpu", "none", compiled=True))
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


def test_calls_of_a_compiled_unet_are_padded(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `compiled`, calls have a padded number of rows and capture all of them; same latents."""
    model = model_loader.LoadedModel(rounds.pipe, "cpu", "none", compiled=True)
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
    """
    assert half.pipe.unet.dtype == torch.bfloat16
    wanted = job(num_inference_steps=STEPS)
    made, whole = latents_of(half.result(wanted)), latents_of(rounds.result(wanted))
    assert float((made - whole).abs().mean()) < 0.1 * float(whole.abs().mean())
