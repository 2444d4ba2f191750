"""The oracle against the theory: samplers, noise levels and prediction types."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch

from tests.engine import oracle
from tests.engine.cases import nightly, slow
from tests.engine.jobs import CLOSE, EPS32
from tests.engine.noise import level_of
from tests.engine.oracle_jobs import BY_DAY, difference, named

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.job import Job

#: Schedulers that live in sigma space and scale the network's input.
SCALED = ("lms_karras", "euler", "euler_karras", "euler_a", "heun", "kdpm2", "kdpm2_a")


def other(pipe: oracle.Pipeline, **options: Any) -> oracle.Pipeline:
    """The bundled model with other options in its scheduler's configuration."""
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **options)
    return diffusers.StableDiffusionPipeline(
        **(pipe.components | {"scheduler": scheduler}), requires_safety_checker=False
    )


def test_euler_is_ddim(pipe: oracle.Pipeline) -> None:
    """In its own space Euler's step is DDIM's, so both give the same from the same noise."""
    leading = other(pipe, timestep_spacing="leading", set_alpha_to_one=True)
    euler, ddim = (oracle.alone(leading, named(name)) for name in ("euler", "ddim"))
    assert difference(euler, ddim) < CLOSE


@pytest.mark.parametrize("name", SCALED)
def test_the_noise_level_is_what_the_scheduler_divides_by(pipe: oracle.Pipeline, name: str) -> None:
    """The loop's `a` at each evaluation is the scheduler's own scale of the UNet's input."""
    scheduler = oracle.scheduler_of(pipe, named(name))
    one = torch.ones(1, 4, 8, 8)
    for number, t in enumerate(scheduler.timesteps):
        level = level_of(pipe, scheduler, number)
        scaled = scheduler.scale_model_input(one, t)
        # As in test_noise_levels.
        assert float(scaled.mean()) == pytest.approx(level.a, rel=8 * EPS32)
        scheduler.step(torch.zeros_like(one), t, one)


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [
        *zip(BY_DAY, ("v_prediction", "sample") * 2, strict=True),
        *slow(
            ("ipndm", "v_prediction"), ("dpmpp_2m_sde_karras", "sample"), ("unipc", "v_prediction")
        ),
        *nightly(*product(sorted(oracle.SCHEDULERS.keys() - {"pndm"}), ("v_prediction", "sample"))),
    ],
)
def test_what_the_network_predicts_changes_nothing(
    pipe: oracle.Pipeline, alone: Callable[[Job], torch.Tensor], name: str, prediction_type: str
) -> None:
    """The same UNet written as velocity or sample gives the same latents; 3e-5 was measured.

    PNDM is left out: it extrapolates the UNet's output, and noise is not velocity.
    """
    wrapped = oracle.wrapped(pipe, prediction_type, named(name))
    assert difference(oracle.alone(wrapped, named(name)), alone(named(name))) < CLOSE


@pytest.mark.slow
def test_a_wrapped_network_is_another_to_diffusers_too(pipe: oracle.Pipeline) -> None:
    """The maintained pipeline gives the same with a wrapped UNet, except for PNDM.

    There the loop follows it: velocity is extrapolated as velocity, a sample as velocity too.
    """
    off = named("euler_karras", sag_scale=0.0)
    velocity = oracle.wrapped(pipe, "v_prediction")
    assert difference(oracle.plain(velocity, off), oracle.plain(pipe, off)) < CLOSE
    off = named("pndm", sag_scale=0.0)
    theirs = oracle.plain(velocity, off)
    assert difference(oracle.alone(velocity, off), theirs) < CLOSE
    assert difference(oracle.alone(oracle.wrapped(pipe, "sample"), off), theirs) < CLOSE
    assert difference(oracle.plain(pipe, off), theirs) > 0.1


def test_a_wrapped_network_takes_a_time_for_each_row(pipe: oracle.Pipeline) -> None:
    """Rows at different timesteps in one call are equal to calls of their own."""
    unet = oracle.wrapped(pipe, "v_prediction").unet
    z, text = torch.randn(2, 4, 16, 16), torch.randn(2, 32, 128)
    times = torch.tensor([870.25, 3.0])
    with torch.no_grad():
        together = unet(z, times, encoder_hidden_states=text).sample
        apart = [unet(z[n : n + 1], times[n], text[n : n + 1]).sample for n in range(2)]
    assert difference(together, torch.cat(apart)) < CLOSE


def test_ipndm_is_adams_bashforth_in_noise(
    pipe: oracle.Pipeline, alone: Callable[[Job], torch.Tensor]
) -> None:
    """IPNDM is DDIM's step along noise that is extrapolated from the last four, 1st to 4th order.

    Its first level is noise alone: the noise is the input itself, and no UNet is evaluated.
    """
    off = named("ipndm", num_inference_steps=6, guidance_scale=1.0, sag_scale=0.0)
    with torch.no_grad():
        text, _ = pipe.encode_prompt(list(off.prompts), "cpu", 1, False)
    weights = (
        [1.0],
        [1.5, -0.5],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    )
    s = np.sin(np.arange(6, -1, -1) / 6 * np.pi / 2) ** 2
    a = np.sqrt(1 - s**2)
    alphas = pipe.scheduler.alphas_cumprod.double().numpy()
    x = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(5))
    past = [x]
    x = float(s[1]) * x
    for n in range(1, 6):
        time = np.interp(np.log(s[n] / a[n]), np.log((1 - alphas) / alphas) / 2, np.arange(1000))
        with torch.no_grad():
            past.insert(0, pipe.unet(x, time, text).sample)
        noise = sum(w * e for w, e in zip(weights[min(n, 3)], past, strict=False))
        x = float(a[n + 1]) * (x - float(s[n]) * noise) / float(a[n]) + float(s[n + 1]) * noise
    assert difference(alone(off), x) < CLOSE
