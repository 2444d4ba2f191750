"""Every sampler by its name: where it asks the network, what it takes, where it ends."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch

from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine import guidance, model_loader
from worker.engine.samplers import SAMPLERS, SamplerState, make
from worker.errors import BadRequestError, ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    # diffusers hands numpy's functions a tensor.
    pytest.mark.filterwarnings("ignore:__array")
]

NAMES = sorted(SAMPLERS)
KINDS = ("epsilon", "v_prediction", "sample")
#: Two evaluations in a step, but for the last step.
TWICE = frozenset({"heun", "heun_karras", "kdpm2", "kdpm2_a"})
STEPS = (2, 3, 4, 5, 8, 13, 25, 30)
CONFIG = diffusers.DDIMScheduler.load_config(SHIPPED_MODEL / "scheduler")


def own(kind: str = "DDIMScheduler", **options: Any) -> Any:
    """The shipped model's own scheduler, or one of another class on top of its configuration."""
    return getattr(diffusers, kind).from_config(CONFIG, **options)


@cache
def made(name: str, steps: int) -> SamplerState:
    """For reading only: KDPM2 takes a tenth of a second to make."""
    return make(name, own(), steps)


def flags(sampling: SamplerState) -> dict[str, Any]:
    """What a scheduler was made with."""
    config = dict(sampling.scheduler.config)
    return {name: config[name] for name in config if not name.startswith("_")}


def learned_at(ratio: float) -> float:
    """The time at which the model knew a sigma / alpha."""
    cumulative = own().alphas_cumprod.double()
    known = (0.5 * ((1 - cumulative) / cumulative).log()).numpy()
    return float(np.interp(np.log(ratio), known, np.arange(len(known))))


def repeats(name: str, evaluations: int) -> set[int]:
    """The evaluations at the noise level of the one before them, by the sampler's own paper."""
    if name == "pndm":
        return {2} & set(range(evaluations))
    return set(range(2, evaluations, 2)) if name in ("heun", "heun_karras", "kdpm2_a") else set()


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_falls(name: str) -> None:
    """One level for each of diffusers' timesteps, on the unit circle, the noise never rising.

    It falls each time but where a sampler corrects itself at the level it has reached: PNDM once,
    Heun and the ancestral KDPM2 in every step.
    """
    for steps in STEPS:
        sampling = made(name, steps)
        levels = sampling.levels
        assert len(levels) == len(sampling.scheduler.timesteps)
        for level in levels:
            assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-6)
            assert level.alpha >= 0
            assert level.sigma > 0
            assert 0 <= level.timestep <= 999
        # By alpha over sigma: near pure noise, sigma itself is 1 to seven places.
        falls = [
            np.arctan2(after.alpha, after.sigma) - np.arctan2(before.alpha, before.sigma)
            for before, after in pairwise(levels)
        ]
        # The least fall is 2e-3; KDPM2's own rounding, where it stays, is 3e-6.
        flat = {number for number, fall in enumerate(falls, 1) if abs(fall) < 1e-5}
        assert flat == repeats(name, len(levels))
        assert all(fall > -1e-5 for fall in falls)
        assert levels[0].sigma > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_told_the_time_of_its_noise(name: str) -> None:
    """The time told is that at which the network learned this noise level, to half a step."""
    for level in (level for steps in STEPS for level in made(name, steps).levels):
        learned = learned_at(level.sigma / max(level.alpha, 1e-12))
        assert level.timestep == pytest.approx(learned, abs=0.51)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"ipndm"}))
@pytest.mark.parametrize("steps", [2, 5])
def test_a_level_is_what_the_scheduler_means(name: str, steps: int) -> None:
    """The level is that by which the scheduler itself scales or reads what it is given.

    IPNDM, which asks no network that was trained on times, has its own test.
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
        assert level.alpha == pytest.approx(alpha, rel=1e-4)
        assert level.timestep == float(timestep)
        scheduler.step(torch.zeros_like(one), timestep, one)


@pytest.mark.parametrize("name", NAMES)
def test_karras_is_in_the_name(name: str) -> None:
    """With Karras in its name a sampler's sigmas are those of arXiv 2206.00364, equation 5.

    Their seventh roots are evenly spaced; without it in the name they are not.
    """
    levels = made(name, 8).levels
    ratios = sorted({round(level.sigma / max(level.alpha, 1e-9), 5) for level in levels})
    bends = np.abs(np.diff(np.array(ratios) ** (1 / 7), n=2))
    assert (float(bends.max()) < 1e-4) == name.endswith("_karras")


def test_ipndm_has_its_own_levels() -> None:
    """IPNDM's sigma at time t of 1 to 0 is sin(t pi / 2) squared; 0 itself is not evaluated."""
    for level, time in zip(make("ipndm", own(), 4).levels, (1, 0.75, 0.5, 0.25), strict=True):
        assert level.sigma == pytest.approx(np.sin(time * np.pi / 2) ** 2, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_counted_as_they_were_asked_for(name: str) -> None:
    """However often a sampler asks the network, it makes `num_inference_steps` steps.

    PNDM asks once more, Heun and KDPM2 twice in each step but the last, the others once. The last
    evaluation always ends a step.
    """
    for steps in (1, *STEPS):
        if steps == 1 and refused(name, 1) is not None:
            continue
        sampling = made(name, steps)
        evaluations = len(sampling.levels)
        extra = steps - 1 if name in TWICE else min(1, steps - 1) if name == "pndm" else 0
        assert evaluations == steps + extra
        ends = [done for done in range(1, evaluations + 1) if sampling.is_step(done)]
        assert len(ends) == steps
        assert ends[-1] == evaluations


def run(
    name: str | None, model_own: Any, steps: int, clean: torch.Tensor
) -> tuple[SamplerState, torch.Tensor]:
    """Latents that a network makes which always takes `clean` for the x0, told in its own way."""
    sampling = make(name, model_own, steps)
    scheduler, generator = sampling.scheduler, torch.Generator().manual_seed(3)
    latents = torch.randn(clean.shape, generator=generator) * scheduler.init_noise_sigma
    for level, timestep in zip(sampling.levels, scheduler.timesteps, strict=True):
        noisy = scheduler.scale_model_input(latents, timestep)
        eps = (noisy - level.alpha * clean) / level.sigma
        output = {
            "epsilon": eps,
            "v_prediction": level.alpha * eps - level.sigma * clean,
            "sample": clean,
        }[sampling.predictions[0]]
        output = guidance.convert(output, noisy, level.alpha, level.sigma, sampling.predictions)
        extra = {"generator": generator} if "generator" in sampling.step_parameters else {}
        latents = scheduler.step(output, timestep, latents, return_dict=False, **extra)[0]
    return sampling, latents


def clean_latents() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


#: What is left of the noise where a sampler ends at the model's first time, not at none.
LEFT = 0.12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted({*NAMES} - {"ipndm", "pndm"}))
def test_a_network_that_knows_the_picture_gets_it(name: str, kind: str) -> None:
    """Whatever the network predicts, the sampler reads it right: a constant x0 comes out."""
    clean = clean_latents()
    for steps in (2, 5):
        _, latents = run(name, own(prediction_type=kind), steps, clean)
        assert float((latents - clean).abs().max()) < LEFT


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [
        ("pndm", "epsilon", 2),
        ("pndm", "epsilon", 12),
        *(("pndm", kind, 50) for kind in KINDS),
        *(("ipndm", kind, 50) for kind in KINDS),
    ],
)
def test_a_network_that_knows_the_picture_gets_it_in_time(name: str, kind: str, steps: int) -> None:
    """So do the two that extrapolate the network's own output, once their steps are small."""
    clean = clean_latents()
    _, latents = run(name, own(prediction_type=kind), steps, clean)
    assert float((latents - clean).abs().max()) < LEFT


def refused(name: str | None, steps: int) -> str | None:
    """Which field is refused, if any is, with the number and the name in what is said."""
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
    clean = clean_latents()
    sampling, latents = run(name, own(), 1, clean)
    assert len(sampling.levels) == 1
    assert float((latents - clean).abs().max()) < LEFT


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
    """So it is without a name, whatever the flags of the model's own scheduler."""
    clean, model_own = clean_latents(), own(kind, **flag)
    try:
        _, latents = run(None, model_own, 1, clean)
    except BadRequestError as refusal:
        where = refusal.details["faults"][0]["where"]
    else:
        assert float((latents - clean).abs().max()) < LEFT
        return
    assert where == "num_inference_steps"


@pytest.mark.parametrize(
    ("name", "steps"), [("lcm", 51), ("tcd", 51), *((name, 1001) for name in NAMES)]
)
def test_more_steps_than_there_are_times_are_refused(name: str, steps: int) -> None:
    """More than the model was trained on, or than a distilled sampler knows: refused by name."""
    assert refused(name, steps) == "num_inference_steps"


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m", "pndm"])
def test_no_number_of_steps_leaves_the_times_that_were_trained(name: str) -> None:
    """Whatever the number, every time told is one that the network knows, or it is refused.

    diffusers' rounding gives -1 with 61 steps, which DDIM takes for the noisiest time.
    """
    for steps in range(1, 151):
        if (where := refused(name, steps)) is not None:
            assert where == "num_inference_steps"
            assert steps > 30, "the usual numbers are possible"
            continue
        times = [level.timestep for level in make(name, own(), steps).levels]
        assert 0 <= min(times) <= max(times) <= 999


@pytest.mark.parametrize("name", sorted({*NAMES} - {"lms", "lms_karras"}))
def test_the_most_steps_are_possible(name: str) -> None:
    """As many steps as the model was trained on, 50 where a sampler is distilled, end right.

    LMS is left out: its integrals are wrong by 2e-2 then, and take seconds.
    """
    clean, most = clean_latents(), 50 if name in ("lcm", "tcd") else 1000
    _, latents = run(name, own(), most, clean)
    assert float((latents - clean).abs().max()) < LEFT


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("PNDMScheduler", {"skip_prk_steps": False}),
        ("IPNDMScheduler", {}),
    ],
)
def test_a_name_means_the_same_noise_on_every_model(kind: str, flag: dict[str, Any]) -> None:
    """The flags of a model's own scheduler change the noise levels of no name."""
    other = own(kind, **flag)
    for name in NAMES:
        assert make(name, other, 8).levels == made(name, 8).levels, name


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
    """Asked for none, the model's own flags stay, and it has a name where it is one of ours."""
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_prediction_that_a_class_lacks_is_converted(name: str, kind: str) -> None:
    """The scheduler is given what its class can take: the network's own kind, or v.

    The class itself is asked whether it can.
    """
    told, taken = make(name, own(prediction_type=kind), 4).predictions
    assert told == kind
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
    """IPNDM asks for no kind: its formula is that of v, whatever the network predicts."""
    for kind in KINDS:
        assert make("ipndm", own(prediction_type=kind), 4).predictions == (kind, "v_prediction")


@pytest.mark.parametrize("kind", ["flow_prediction", "nonsense"])
def test_a_prediction_that_nobody_knows_does_not_load(tmp_path: Path, kind: str) -> None:
    """A model that predicts something else is refused when it loads, not guided wrongly."""
    for part in SHIPPED_MODEL.iterdir():
        if part.name != "scheduler":
            (tmp_path / part.name).symlink_to(part)
    own(prediction_type=kind).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ModelLoadError, match=kind):
        model_loader.load(ModelSpec(path=str(tmp_path), safety_checker=False), "cpu", "none")


def test_samplings_share_nothing() -> None:
    """Two pictures' samplers are two objects: one's step moves the other by nothing."""
    first, second = (make("dpmpp_2m", own(), 5) for _ in "ab")
    one = torch.ones(1, 4, 8, 8)
    first.scheduler.step(one, first.scheduler.timesteps[0], one)
    assert first.scheduler is not second.scheduler
    assert first.levels == second.levels
    assert second.scheduler.step_index is None
