"""The count of a full size without memory: of weights, of a call, and of what SAG reads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import full_size, sdxl
from benchmarks.cuda_dry_run import dry_run, models, scenes

SMALL = replace(
    full_size.MODELS["sdxl"], build=partial(sdxl.pipeline, 8, shallow=True), size_px=256
)


def test_a_call_is_what_the_dry_run_counts() -> None:
    """A UNet call of two rows has the peak that it has in an engine on a simulated device.

    The engine's call has its own copies of latents and conditioning, and a result in float32.
    """
    pipe = full_size.pipeline(SMALL)
    counted = full_size.call_bytes(SMALL, pipe, 2, 0, 256)
    with dry_run.engine_on_fake_cuda() as fake:
        job = scenes.job(0, "ddim", num_inference_steps=1, height=256, width=256, sag_scale=0.0)
        rounds = scenes.Rounds(lambda: models.load("small-sdxl"), 8)
        rounds.run([scenes.Arrival(0, job)], 1)
    (call,) = (tally for tally in fake.tallies if tally.kind == "UNet, 2 rows")
    assert counted <= call.growth_bytes <= 1.1 * counted


def test_rows_cost_the_same() -> None:
    """Twice the rows take twice the memory; listening to the attention takes more, but no map."""
    pipe = full_size.pipeline(SMALL)
    one, two, sag = (
        full_size.call_bytes(SMALL, pipe, *rows, 256) for rows in ((1, 0), (2, 0), (1, 1))
    )
    assert two == pytest.approx(2 * one, rel=0.05)
    assert sag >= one


def test_what_sag_reads() -> None:
    """At 1,024 px SAG keeps 4 KiB of a row; the map of all heads would be 40 MiB."""
    of_row = full_size.sums(full_size.pipeline(SMALL), 1024)
    assert (of_row.positions, of_row.kept_bytes, of_row.map_bytes) == (1024, 4096, 40 * 2**20)


@pytest.mark.slow
def test_the_published_sizes() -> None:
    """Stable Diffusion XL's networks have as many parameters as the published ones."""
    pipe = full_size.pipeline(full_size.MODELS["sdxl"])
    counts = {
        name: sum(each.numel() for each in getattr(pipe, name).parameters())
        for name in full_size.MODELS["sdxl"].family.networks
    }
    assert counts == {
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "unet": 2_567_463_684,
        "vae": 83_653_863,
    }
    assert full_size.weights_bytes(pipe.unet) == 2 * counts["unet"]
    assert pipe.vae.dtype == torch.float32
