"""Every sampler by its name: its noise levels, its prediction type, and the latents it ends at."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch

from tests.engine.cases import chosen, nightly, rotated, slow
from tests.engine.jobs import EPS32
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine import guidance
from worker.engine.loading import model_loader
from worker.engine.sampling.samplers import SAMPLERS, make
from worker.errors import BadRequestError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from worker.engine.sampling.noise_levels import NoiseLevel
    from worker.engine.sampling.sampler_state import SamplerState

pytestmark = [
    # diffusers hands numpy's functions a tensor.
    pytest.mark.filterwarnings("ignore:__array")
]

NAMES = sorted(SAMPLERS)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
#: Two evaluations in each step but the last.
TWICE = frozenset({"heun", "heun_karras", "kdpm2", "kdpm2_a"})
#: Numbers of steps by day and by night.
STEPS = [2, 5, 13, *nightly(3, 4, 8, 25, 30)]
CONFIG = diffusers.DDIMScheduler.load_config(SHIPPED_MODEL / "scheduler")


def own(kind: str = "DDIMScheduler", **options: Any) -> Any:
    """The bundled model's own scheduler, or one of another class on top of its configuration."""
    return getattr(diffusers, kind).from_config(CONFIG, **options)


@cache
def made(name: str, steps: int) -> SamplerState:
    """A sampler that is only read: KDPM2 takes a tenth of a second to make."""
    return make(name, own(), steps)


def sigma_over_alpha(level: NoiseLevel) -> float:
    return level.sigma / max(level.alpha, 1e-12)


def flags(sampling: SamplerState) -> dict[str, Any]:
    """The configuration of a scheduler."""
    config = dict(sampling.scheduler.config)
    return {name: config[name] for name in config if not name.startswith("_")}


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


FLAGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("PNDMScheduler", {"skip_prk_steps": False}),
    ("IPNDMScheduler", {}),
)


@pytest.mark.parametrize(("name", "number"), rotated(NAMES, range(len(FLAGS)), slow))
def test_a_name_means_the_same_noise_on_every_model(name: str, number: int) -> None:
    """The flags of a model's own scheduler change the noise levels of no name."""
    kind, flag = FLAGS[number]
    assert make(name, own(kind, **flag), 5).levels == made(name, 5).levels


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("dpmpp_2")])
def test_a_name_is_a_solver(name: str) -> None:
    """The 2 in a name is the solver's order and SDE its algorithm, whatever the model's own is."""
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        other = own("DPMSolverMultistepScheduler", solver_order=3, algorithm_type=algorithm)
        made_with = flags(make(name, other, 7))
        assert made_with["algorithm_type"] == ("sde-" if "sde" in name else "") + "dpmsolver++"
        assert made_with["solver_order"] == 2


@pytest.mark.parametrize(
    ("kind", "flag", "name"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "dpmpp_2m_karras"),
        ("DPMSolverMultistepScheduler", {}, "dpmpp_2m"),
        ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}, "DPMSolverMultistepScheduler"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "euler"),
        ("PNDMScheduler", {"skip_prk_steps": True}, "pndm"),
        ("PNDMScheduler", {"skip_prk_steps": False}, "PNDMScheduler"),
    ],
)
def test_without_a_name_the_models_own_is_kept(kind: str, flag: dict[str, Any], name: str) -> None:
    """Without a name the model's own flags stay; the result has a wire name where one fits."""
    model_own = own(kind, **flag)
    sampling = make(None, model_own, 6)
    assert sampling.name == name
    assert type(sampling.scheduler) is type(model_own)
    assert sampling.scheduler is not model_own
    assert flags(sampling) | flag == flags(sampling)
    assert dict(sampling.scheduler.config) == dict(model_own.config)
    model_own.set_timesteps(6)
    expected = [float(timestep) for timestep in model_own.timesteps]
    assert [level.timestep for level in sampling.levels] == expected


@pytest.mark.parametrize(("name", "kind"), rotated(NAMES, PREDICTIONS, slow))
def test_a_prediction_that_a_class_lacks_is_converted(name: str, kind: str) -> None:
    """The scheduler gets what its class accepts: the network's own prediction type, or v.

    The class itself is asked whether it accepts it.
    """
    predicted, taken = make(name, own(prediction_type=kind), 4).predictions
    assert predicted == kind
    assert taken in (kind, "v_prediction")
    bare = getattr(diffusers, SAMPLERS[name].class_name).from_config(
        own(prediction_type=kind).config, **SAMPLERS[name].options
    )
    bare.set_timesteps(4)
    one = torch.ones(1, 4, 8, 8)
    bare.scale_model_input(one, bare.timesteps[0])
    try:
        bare.step(one, bare.timesteps[0], one)
    except (ValueError, NotImplementedError):
        assert taken == "v_prediction" != kind


def test_what_ipndm_takes_is_v() -> None:
    """IPNDM has no prediction type: its formula is that of v, whatever the network predicts."""
    for kind in PREDICTIONS:
        assert make("ipndm", own(prediction_type=kind), 4).predictions == (kind, "v_prediction")


@pytest.mark.parametrize("kind", ["flow_prediction", "nonsense"])
def test_an_unknown_prediction_does_not_load(tmp_path: Path, kind: str) -> None:
    """A model that predicts something else is refused when it loads, not guided wrongly."""
    for part in SHIPPED_MODEL.iterdir():
        if part.name != "scheduler":
            (tmp_path / part.name).symlink_to(part)
    own(prediction_type=kind).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ModelLoadError, match=kind):
        model_loader.load(ModelSpec(path=str(tmp_path), safety_checker=False), "cpu", "none")


def test_samplings_share_nothing() -> None:
    """Two images' samplers are two objects: a step of one does not change the other."""
    first, second = (make("dpmpp_2m", own(), 5) for _ in "ab")
    one = torch.ones(1, 4, 8, 8)
    first.scheduler.step(one, first.scheduler.timesteps[0], one)
    assert first.scheduler is not second.scheduler
    assert first.levels == second.levels
    assert second.scheduler.step_index is None
