"""UniPC's updates with coefficients from the host are diffusers' own."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import diffusers
import pytest
import torch

from tests.engine.jobs import EPS32
from worker.engine.sampling import samplers, unipc

OWN = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
#: Operations of one step that round: up to 4 terms of each update, and the output's conversion.
ROUNDINGS = 12


def configured(steps: int, **options: Any) -> Any:
    scheduler = diffusers.UniPCMultistepScheduler.from_config(OWN.config, **options)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [1, 2, 3, 25])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"predict_x0": False, "final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True},
        {"prediction_type": "v_prediction"},
    ],
    ids=str,
)
def test_each_step_is_diffusers_own(options: dict[str, Any], steps: int) -> None:
    """Each step is diffusers' own within rounding; two copies do not disturb each other."""
    theirs, source = configured(steps, **options), configured(steps, **options)
    unipc.compute_on_host(source)
    ours, beside = copy.deepcopy(source), copy.deepcopy(source)
    torch.manual_seed(0)
    sample = torch.randn(1, 4, 8, 8)
    mine, other = sample.clone(), sample.clone()
    for number, timestep in enumerate(theirs.timesteps, start=1):
        output = torch.randn(1, 4, 8, 8)
        sample = theirs.step(output, timestep, sample, return_dict=False)[0]
        mine = ours.step(output, timestep, mine, return_dict=False)[0]
        other = beside.step(output, timestep, other, return_dict=False)[0]
        assert torch.equal(mine, other)
        limit = number * ROUNDINGS * EPS32 * float(sample.abs().max())
        assert float((mine - sample).abs().max()) <= limit


def test_a_gpu_gets_it_and_a_cpu_does_not() -> None:
    """UniPC on the CPU is diffusers' own, and on a GPU the one with host coefficients."""
    on_cpu = samplers.make("unipc", OWN, 5).scheduler
    on_gpu = samplers.make("unipc", OWN, 5, on_gpu=True).scheduler
    assert type(on_cpu) is diffusers.UniPCMultistepScheduler
    assert type(on_gpu) is unipc.HostUniPC


def test_a_scheduler_goes_with_its_image() -> None:
    """A scheduler's tensors on the GPU are freed with its image, without the garbage collector."""
    made = samplers.make("unipc", OWN, 5, on_gpu=True)
    seen = weakref.ref(made.scheduler)
    gc.disable()
    try:
        del made
        assert seen() is None
    finally:
        gc.enable()


def test_half_precision_stays() -> None:
    """A step of half-precision latents gives latents in half precision."""
    source = configured(3)
    unipc.compute_on_host(source)
    sample = torch.randn(1, 4, 8, 8).half()
    for timestep in source.timesteps:
        sample = source.step(sample, timestep, sample, return_dict=False)[0]
        assert sample.dtype == torch.float16
