"""A model's own scheduler: which of its flags a sampler keeps, and its prediction type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch

from tests.engine.cases import rotated, slow
from tests.engine.named_samplers import NAMES, PREDICTIONS, made, own
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine.loading import model_loader
from worker.engine.sampling.samplers import SAMPLERS, make
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from worker.engine.sampling.sampler_state import SamplerState

pytestmark = [
    # diffusers hands numpy's functions a tensor.
    pytest.mark.filterwarnings("ignore:__array")
]


def flags(sampling: SamplerState) -> dict[str, Any]:
    """The configuration of a scheduler."""
    config = dict(sampling.scheduler.config)
    return {name: config[name] for name in config if not name.startswith("_")}


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
