"""The noise levels and timesteps of every sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.engine.cases import rotated
from tests.engine.jobs import EPS32
from tests.engine.named_samplers import NAMES, STEPS, made, own
from worker.engine.sampling.samplers import make

if TYPE_CHECKING:
    from worker.engine.sampling.noise_levels import NoiseLevel

pytestmark = [
    # diffusers hands numpy's functions a tensor.
    pytest.mark.filterwarnings("ignore:__array")
]


def sigma_over_alpha(level: NoiseLevel) -> float:
    return level.sigma / max(level.alpha, 1e-12)


def learned_at(ratio: float) -> float:
    """The timestep at which the model was trained with this sigma / alpha."""
    cumulative = own().alphas_cumprod.double()
    known = (0.5 * ((1 - cumulative) / cumulative).log()).numpy()
    return float(np.interp(np.log(ratio), known, np.arange(len(known))))


def repeats(name: str, evaluations: int) -> set[int]:
    """The evaluations at the noise level of the one before them, by the sampler's own paper."""
    if name == "pndm":
        return {2} & set(range(evaluations))
    return set(range(2, evaluations, 2)) if name in ("heun", "heun_karras", "kdpm2_a") else set()


def angle_rounding(name: str, levels: tuple[NoiseLevel, ...], number: int) -> float:
    """Bound on the rounding of the angle between evaluation `number` and the one before it.

    The angle is arctan(alpha / sigma). Where a level repeats, both have the same float32 sigma, and
    the difference is 0; but for the ancestral KDPM2, whose middle level t is computed as
    exp((log s + log d) / 2) with d = (t^2 - u^2)^0.5 and u^2 = t^2 (s^2 - t^2) / s^2. Exactly, d is
    t^2 / s and the middle t. In float32, u^2 has ten roundings of EPS32 / 2 (two squares, their
    difference, product, quotient, root, square, and those of t^2). The difference t^2 - u^2 is
    t^2 (t / s)^2, so relative errors are 10 (s / t)^2 roundings in d^2, half of that in d, a
    quarter in the middle. Log and exp add fifteen, since |log s| < 5. A relative error r of
    sigma / alpha = t turns the angle by r t / (1 + t^2).
    """
    if name != "kdpm2_a" or number % 2:
        return 0.0
    s, t = (sigma_over_alpha(levels[each]) for each in (number - 2, number))
    return (2.5 * (s / t) ** 2 + 15) * EPS32 / 2 * t / (1 + t**2)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_noise_falls(name: str, steps: int) -> None:
    """Each of diffusers' timesteps has one level on the unit circle, and the noise never rises.

    It falls each time but where a sampler corrects itself at the level it has reached: PNDM once,
    Heun and the ancestral KDPM2 in every step. The least fall is 2e-3, the largest rounding that is
    allowed 5e-5 (1.1e-5 was measured on an Intel Xeon).
    """
    sampling = made(name, steps)
    levels = sampling.levels
    assert len(levels) == len(sampling.scheduler.timesteps)
    for level in levels:
        # IPNDM's alpha and sigma are float32, each within EPS32; the others are float64.
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=0, abs=2 * EPS32)
        assert level.alpha >= 0
        assert level.sigma > 0
        assert 0 <= level.timestep <= 999
    # By alpha over sigma: near pure noise, sigma itself is 1 to seven places.
    angles = [np.arctan2(level.alpha, level.sigma) for level in levels]
    falls = {number: angles[number] - angles[number - 1] for number in range(1, len(levels))}
    allowed = {number: angle_rounding(name, levels, number) for number in falls}
    assert max(allowed.values()) < 1e-4
    flat = {number for number, fall in falls.items() if abs(fall) <= allowed[number]}
    assert flat == repeats(name, len(levels))
    assert all(fall >= -allowed[number] for number, fall in falls.items())
    assert levels[0].sigma > 0.99


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_timestep_belongs_to_the_noise(name: str, steps: int) -> None:
    """The UNet gets the timestep at which it was trained with this noise level.

    To half a step, by which diffusers rounds, and 0.01 for interpolating between two timesteps.
    """
    for level in made(name, steps).levels:
        learned = learned_at(sigma_over_alpha(level))
        assert level.timestep == pytest.approx(learned, rel=0, abs=0.51)


@pytest.mark.parametrize(("name", "steps"), rotated(sorted({*NAMES} - {"ipndm"}), (2, 5)))
def test_a_level_is_what_the_scheduler_means(name: str, steps: int) -> None:
    """The level is the one by which the scheduler itself scales the input or reads the output.

    IPNDM, whose levels are not those of the training, has its own test.
    """
    sampling = make(name, own(), steps)
    scheduler, one = sampling.scheduler, torch.ones(1, 4, 8, 8)
    in_sigma = scheduler.init_noise_sigma != 1
    assert in_sigma == (float(scheduler.scale_model_input(one, scheduler.timesteps[0]).max()) < 1)
    for number, (level, timestep) in enumerate(
        zip(sampling.levels, scheduler.timesteps, strict=True)
    ):
        if in_sigma:
            alpha = float(scheduler.scale_model_input(one, timestep).mean())
        elif hasattr(scheduler, "sigmas"):
            alpha = float(scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[number])[0])
        else:
            alpha = float(scheduler.alphas_cumprod[timestep] ** 0.5)
        # Five operations in float32 here (square, add, root, divide, mean) or one there.
        assert level.alpha == pytest.approx(alpha, rel=8 * EPS32)
        assert level.timestep == float(timestep)
        scheduler.step(torch.zeros_like(one), timestep, one)


@pytest.mark.parametrize("name", NAMES)
def test_karras_is_in_the_name(name: str) -> None:
    """With Karras in its name a sampler's sigmas are those of arXiv 2206.00364, equation 5.

    Their seventh roots are evenly spaced; without it in the name they are not.
    """
    roots = np.array(sorted({sigma_over_alpha(each) for each in made(name, 8).levels})) ** (1 / 7)
    bends = np.abs(np.diff(roots, n=2))
    # A seventh root of a float32 is within EPS32 / 14 of itself; a bend is made of four of them.
    rounding = 4 * EPS32 / 14 * roots.max()
    assert (float(bends.max()) < 4 * rounding) == name.endswith("_karras")


def test_ipndm_has_its_own_levels() -> None:
    """IPNDM's sigma at time t from 1 to 0 is sin(t pi / 2) squared; at 0 nothing is evaluated."""
    for level, time in zip(make("ipndm", own(), 4).levels, (1, 0.75, 0.5, 0.25), strict=True):
        # Five operations in float32: the time, its product, the sine, and its square twice.
        expected = np.sin(time * np.pi / 2) ** 2
        assert level.sigma == pytest.approx(expected, rel=0, abs=5 * EPS32)
