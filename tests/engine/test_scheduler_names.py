"""A job's scheduler by its wire name: which are served, and which name a result has."""

from __future__ import annotations

import diffusers
import pytest
import torch

from tests.engine import oracle
from tests.engine.cases import chosen
from tests.engine.jobs import Make, Rounds, latents_of
from worker.engine.sampling import samplers, unserved_samplers
from worker.engine.sampling.samplers import SAMPLERS
from worker.errors import BadRequestError, UnsupportedSchedulerError


def test_every_scheduler_is_tested() -> None:
    """The oracle's table has exactly the supported schedulers."""
    assert set(oracle.SCHEDULERS) == set(samplers.SAMPLERS)


@pytest.mark.parametrize(
    "name", chosen(sorted(oracle.SCHEDULERS), ("euler", "pndm", "unipc_karras"))
)
def test_a_models_own_scheduler_has_its_name(
    rounds: Rounds, make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without a name a model's own scheduler is used, and the result has its wire name."""
    kind, options = oracle.SCHEDULERS[name]
    own = kind.from_config(rounds.pipe.scheduler.config, **options)
    monkeypatch.setattr(rounds.pipe, "scheduler", own)
    assert make(num_inference_steps=2, height=32, width=32).scheduler == name


def test_every_scheduler_has_its_name(rounds: Rounds) -> None:
    """The sampler of each class, with each option, has its wire name."""
    for name, (kind, options) in oracle.SCHEDULERS.items():
        own = kind.from_config(rounds.pipe.scheduler.config, **options)
        assert samplers._name_of(own) == name


def test_a_name_means_the_same_on_every_model(
    rounds: Rounds, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dpmpp_2m` has no Karras sigmas, also where the model's own scheduler has."""
    before = latents_of(make(scheduler="dpmpp_2m"))
    own = rounds.pipe.scheduler
    karras = diffusers.DPMSolverMultistepScheduler.from_config(own.config, use_karras_sigmas=True)
    monkeypatch.setattr(rounds.pipe, "scheduler", karras)
    assert torch.equal(latents_of(make(scheduler="dpmpp_2m")), before)


def test_an_unknown_scheduler_is_refused_by_name(make: Make) -> None:
    """An unknown scheduler is refused at once, with the supported names."""
    with pytest.raises(UnsupportedSchedulerError) as refused:
        make(scheduler="nonsense")
    assert "nonsense" in refused.value.message
    assert {"ddim", "euler", "lms"} <= set(refused.value.details["served"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dpmpp_sde", "no seed of a task determines"),
        ("dpmpp_sde_karras", "dpmpp_2m_sde solves the same"),
        ("edm_euler", "EDM's preconditioning"),
    ],
)
def test_a_sampler_that_is_not_served_has_a_reason(make: Make, name: str, reason: str) -> None:
    """A sampler of diffusers' enumeration that is not served is refused with the reason."""
    with pytest.raises(UnsupportedSchedulerError, match=f"{name}.* is not served.*{reason}") as no:
        make(scheduler=name)
    assert name not in no.value.details["served"]


def test_every_sampler_of_the_enumeration_is_known() -> None:
    """Each class of `KarrasDiffusionSchedulers` is served, or has the reason why not."""
    for kind in diffusers.schedulers.KarrasDiffusionSchedulers:
        served = [name for name, each in SAMPLERS.items() if each.class_name == kind.name]
        assert bool(served) is not bool(unserved_samplers.why(kind.name))


def test_eta_is_refused_where_it_has_no_meaning(make: Make) -> None:
    """An `eta` that the scheduler would ignore is refused by field."""
    with pytest.raises(BadRequestError) as refused:
        make(scheduler="pndm", eta=0.5)
    assert refused.value.details["faults"][0]["where"] == "eta"
