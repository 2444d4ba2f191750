"""The UNet as the engine calls it: compiled, sliced, in half precision."""

from __future__ import annotations

import numpy as np
import torch
from torch._dynamo.utils import counters

from tests.engine.jobs import SPEC, Rounds, apart, job, latents_of
from worker.engine import model_loader

STEPS = 6


def test_a_compiled_network_is_compiled_once_for_each_size() -> None:
    """Calls of many numbers of rows, with and without SAG, make no more graphs than padded sizes.

    And the same latents. Traced for real, run by torch's eager backend: the compiler's own kernels
    take minutes.
    """
    model = model_loader.load(SPEC, "cpu", "none")
    model.pipeline.unet.compile(dynamic=False, backend="eager")
    compiled = Rounds(model=model_loader.LoadedModel(model.pipeline, "cpu", "none", compiled=True))
    plain = Rounds()
    counters.clear()
    for pictures in (1, 2, 3):
        for sag_scale in (0.75, 0.0):
            wanted = job(
                num_inference_steps=STEPS, num_images_per_prompt=pictures, sag_scale=sag_scale
            )
            difference = apart(
                latents_of(compiled.result(wanted)), latents_of(plain.result(wanted))
            )
            assert difference < 2e-4
    # 2, 4 and 6 rows in the main pass, 1, 2 and 3 in the degraded one: padded to 1, 2, 4 and 8.
    assert counters["stats"]["unique_graphs"] <= 4
    assert not counters["graph_break"]


def test_slices_and_tiles_make_the_same_picture(rounds: Rounds) -> None:
    """The settings reach the autoencoder, and a sliced decode changes no pixel by more than 1."""
    wanted = job(num_inference_steps=STEPS, num_images_per_prompt=2, output_type="png")
    sliced = Rounds(SPEC.model_copy(update={"vae_slicing": True, "vae_tiling": True}))
    assert sliced.pipe.vae.use_slicing
    assert sliced.pipe.vae.use_tiling
    assert not rounds.pipe.vae.use_slicing
    pairs = zip(sliced.result(wanted).pictures, rounds.result(wanted).pictures, strict=True)
    for ours, whole in pairs:
        apart_by = np.asarray(ours.pixels, np.int16) - np.asarray(whole.pixels, np.int16)
        assert np.abs(apart_by).max() <= 1


def test_half_precision_is_near(rounds: Rounds) -> None:
    """In bfloat16 the engine makes finite latents in bfloat16's reach of the fp32 ones."""
    half = Rounds(SPEC.model_copy(update={"dtype": "bfloat16"}))
    assert half.pipe.unet.dtype == torch.bfloat16
    wanted = job(num_inference_steps=12)
    made, whole = latents_of(half.result(wanted)), latents_of(rounds.result(wanted))
    assert float((made - whole).abs().mean()) < 0.1 * float(whole.abs().mean())
