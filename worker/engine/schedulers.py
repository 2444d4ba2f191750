"""The samplers by their name on the wire, each made anew for a job from the model's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers

from api_contracts.errors import Fault
from worker.errors import BadRequest, UnsupportedScheduler


@dataclass(frozen=True)
class _Sampler:
    """A class of diffusers and what it is made with on top of the model's configuration."""

    class_name: str
    options: dict[str, Any] = field(default_factory=dict)
    #: Whether diffusers' SAG pipeline takes it; it refuses those with fractional timesteps.
    served: bool = True


_DPMPP = {"algorithm_type": "dpmsolver++"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_PLAIN, _KARRAS = {"use_karras_sigmas": False}, {"use_karras_sigmas": True}

SAMPLERS: dict[str, _Sampler] = {
    "ddim": _Sampler("DDIMScheduler"),
    "ddpm": _Sampler("DDPMScheduler"),
    "pndm": _Sampler("PNDMScheduler", {"skip_prk_steps": True}),
    "dpmpp_2m": _Sampler("DPMSolverMultistepScheduler", _DPMPP | _PLAIN),
    "dpmpp_2m_karras": _Sampler("DPMSolverMultistepScheduler", _DPMPP | _KARRAS),
    "dpmpp_2m_sde": _Sampler("DPMSolverMultistepScheduler", _SDE | _PLAIN),
    "dpmpp_2m_sde_karras": _Sampler("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    "dpmpp_2s": _Sampler("DPMSolverSinglestepScheduler", _DPMPP | _PLAIN),
    "unipc": _Sampler("UniPCMultistepScheduler", _PLAIN),
    "deis": _Sampler("DEISMultistepScheduler", _PLAIN),
    "lms": _Sampler("LMSDiscreteScheduler", served=False),
    "euler": _Sampler("EulerDiscreteScheduler", served=False),
    "euler_a": _Sampler("EulerAncestralDiscreteScheduler", served=False),
    "heun": _Sampler("HeunDiscreteScheduler", served=False),
    "kdpm2": _Sampler("KDPM2DiscreteScheduler", served=False),
    "kdpm2_a": _Sampler("KDPM2AncestralDiscreteScheduler", served=False),
    "ipndm": _Sampler("IPNDMScheduler", served=False),
    "lcm": _Sampler("LCMScheduler", served=False),
    "tcd": _Sampler("TCDScheduler", served=False),
}


def make(name: str | None, own: Any) -> tuple[str, Any]:  # noqa: ANN401  # diffusers has no base
    """A new scheduler and its name: `name`, or the kind of the model's `own` when None.

    Raises `UnsupportedScheduler` with the names that are served.
    """
    if name is None:
        return _name_of(own), type(own).from_config(own.config)
    sampler = SAMPLERS.get(name)
    if sampler is None or not sampler.served:
        served = [known for known, each in SAMPLERS.items() if each.served]
        why = "is not known" if sampler is None else "can't be combined with guidance yet"
        message = f"scheduler {name!r} {why}; served are {', '.join(served)}"
        raise UnsupportedScheduler(message, where="scheduler", served=served)
    kind = getattr(diffusers, sampler.class_name)
    return name, kind.from_config(own.config, **sampler.options)


def is_served(own: Any) -> bool:  # noqa: ANN401  # diffusers has no base
    """Whether a model's own scheduler can be used; one that has no name here is given a try."""
    kind = type(own).__name__
    return all(each.served for each in SAMPLERS.values() if each.class_name == kind)


def check_eta(eta: float, scheduler: str) -> None:
    """Refuse an `eta` that the scheduler would not use."""
    if eta > 0 and scheduler != "ddim":
        what = f"has no meaning for scheduler {scheduler}"
        raise BadRequest(Fault(where="eta", what=what, limit="ddim only"))


def _name_of(own: Any) -> str:  # noqa: ANN401  # diffusers has no base
    for name, sampler in SAMPLERS.items():
        options_hold = all(own.config.get(key) == value for key, value in sampler.options.items())
        if sampler.class_name == type(own).__name__ and options_hold:
            return name
    return type(own).__name__
