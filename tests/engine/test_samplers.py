"""Every sampler by its name: its steps, and the latents it ends at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.cases import chosen, nightly, rotated
from tests.engine.named_samplers import NAMES, PREDICTIONS, STEPS, made, own
from worker.engine import guidance
from worker.engine.sampling.samplers import make
from worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.engine.sampling.sampler_state import SamplerState

pytestmark = [
    # diffusers hands numpy's functions a tensor.
    pytest.mark.filterwarnings("ignore:__array")
]

#: Two evaluations in each step but the last.
TWICE = frozenset({"heun", "heun_karras", "kdpm2", "kdpm2_a"})


@pytest.mark.parametrize("steps", [1, *STEPS])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_counted_as_requested(name: str, steps: int) -> None:
    """However often a sampler evaluates the UNet, it makes `num_inference_steps` steps.

    PNDM evaluates once more, Heun and KDPM2 twice in each step but the last, the others once. The
    last evaluation always ends a step.
    """
    if steps == 1 and refused(name, 1) is not None:
        return
    sampling = made(name, steps)
    evaluations = len(sampling.levels)
    extra = steps - 1 if name in TWICE else min(1, steps - 1) if name == "pndm" else 0
    assert evaluations == steps + extra
    ends = [done for done in range(1, evaluations + 1) if sampling.is_step(done)]
    assert len(ends) == steps
    assert ends[-1] == evaluations


def run(
    name: str | None, model_own: Any, steps: int, x0: torch.Tensor
) -> tuple[SamplerState, torch.Tensor]:
    """Latents that a network makes which always predicts `x0`, in its own prediction type."""
    sampling = make(name, model_own, steps)
    scheduler, generator = sampling.scheduler, torch.Generator().manual_seed(3)
    latents = torch.randn(x0.shape, generator=generator) * scheduler.init_noise_sigma
    for level, timestep in zip(sampling.levels, scheduler.timesteps, strict=True):
        noisy = scheduler.scale_model_input(latents, timestep)
        eps = (noisy - level.alpha * x0) / level.sigma
        output = {
            "epsilon": eps,
            "v_prediction": level.alpha * eps - level.sigma * x0,
            "sample": x0,
        }[sampling.predictions[0]]
        output = guidance.convert(output, noisy, level.alpha, level.sigma, sampling.predictions)
        extra = {"generator": generator} if "generator" in sampling.step_parameters else {}
        latents = scheduler.step(output, timestep, latents, return_dict=False, **extra)[0]
    return sampling, latents


def some_x0() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


#: Samplers whose 1,000 steps take less than a second.
BRIEF = ("ddim", "lcm", "tcd", "euler")
#: Samplers that do not extrapolate the UNet's output itself.
CONSTANT = sorted({*NAMES} - {"ipndm", "pndm"})
#: Noise that is left where a sampler ends at the model's first timestep and not at none: the sigma
#: there, 0.029, times the largest of 256 normal numbers (below 4 with 98 % for any seed).
LEFT = 4 * 0.03


@pytest.mark.parametrize("steps", [5, *nightly(2, 3, 8)])
@pytest.mark.parametrize(("name", "kind"), rotated(CONSTANT, PREDICTIONS))
def test_a_network_that_knows_the_picture_gets_it(name: str, kind: str, steps: int) -> None:
    """Whatever the network predicts, the sampler reads it right: a constant x0 comes out."""
    x0 = some_x0()
    _, latents = run(name, own(prediction_type=kind), steps, x0)
    assert float((latents - x0).abs().max()) < LEFT


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [
        ("pndm", "epsilon", 2),
        ("pndm", "epsilon", 12),
        *(("pndm", kind, 50) for kind in PREDICTIONS),
        *(("ipndm", kind, 50) for kind in PREDICTIONS),
    ],
)
def test_a_network_that_knows_the_picture_gets_it_in_time(name: str, kind: str, steps: int) -> None:
    """PNDM and IPNDM, which extrapolate, end at the network's x0 once their steps are small."""
    x0 = some_x0()
    _, latents = run(name, own(prediction_type=kind), steps, x0)
    assert float((latents - x0).abs().max()) < LEFT


def refused(name: str | None, steps: int) -> str | None:
    """The refused field, or None; the message must have the number and the name."""
    try:
        make(name, own(), steps)
    except BadRequestError as error:
        (fault,) = error.details["faults"]
        named = str(steps) in fault["what"] and str(name) in fault["what"]
        return str(fault["where"]) if named else "not named"
    return None


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_right_or_refused(name: str) -> None:
    """A single step gives the network's x0, or is refused as `num_inference_steps`."""
    if (where := refused(name, 1)) is not None:
        assert where == "num_inference_steps"
        return
    x0 = some_x0()
    sampling, latents = run(name, own(), 1, x0)
    assert len(sampling.levels) == 1
    assert float((latents - x0).abs().max()) < LEFT


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("DEISMultistepScheduler", {"use_karras_sigmas": True}),
        ("DEISMultistepScheduler", {"use_beta_sigmas": True}),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
        ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
        ("IPNDMScheduler", {}),
    ],
)
def test_one_step_of_a_models_own_is_right_or_refused(kind: str, flag: dict[str, Any]) -> None:
    """One step of a model's own scheduler gives the network's x0 or is refused, for any flags."""
    x0, model_own = some_x0(), own(kind, **flag)
    try:
        _, latents = run(None, model_own, 1, x0)
    except BadRequestError as refusal:
        where = refusal.details["faults"][0]["where"]
    else:
        assert float((latents - x0).abs().max()) < LEFT
        return
    assert where == "num_inference_steps"


@pytest.mark.parametrize(
    ("name", "steps"), [("lcm", 51), ("tcd", 51), *((name, 1001) for name in NAMES)]
)
def test_more_steps_than_timesteps_are_refused(name: str, steps: int) -> None:
    """More steps than the training had, or than a distilled sampler knows, are refused by field."""
    assert refused(name, steps) == "num_inference_steps"


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        *((name, (1, 30, 50, 61, 150)) for name in ("ddim", "euler", "dpmpp_2m", "pndm")),
        *nightly(*((name, range(1, 151)) for name in ("ddim", "euler", "dpmpp_2m", "pndm"))),
    ],
)
def test_all_timesteps_are_trained_ones(name: str, numbers: Iterable[int]) -> None:
    """Whatever the number of steps, every timestep is one of the training, or it is refused.

    diffusers' rounding gives -1 with 61 steps, which DDIM takes for the noisiest timestep.
    """
    for steps in numbers:
        if (where := refused(name, steps)) is not None:
            assert where == "num_inference_steps"
            assert steps > 30, "the usual numbers are possible"
            continue
        times = [level.timestep for level in make(name, own(), steps).levels]
        assert 0 <= min(times) <= max(times) <= 999


@pytest.mark.parametrize(
    "name",
    chosen(sorted({*NAMES} - {"lms", "lms_karras"}), BRIEF, nightly),
)
def test_the_most_steps_are_possible(name: str) -> None:
    """As many steps as the training had, or 50 for a distilled sampler, end at the x0.

    LMS is left out: its integrals are off by 2e-2 then, and take seconds.
    """
    x0, most = some_x0(), 50 if name in ("lcm", "tcd") else 1000
    _, latents = run(name, own(), most, x0)
    assert float((latents - x0).abs().max()) < LEFT
