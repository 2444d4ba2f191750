"""The samplers by their wire names; each image gets its own, configured as the model's."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from api_contracts.request import ETA_SCHEDULERS
from worker.engine.jobs.job import refusal
from worker.engine.sampling import host_noise, noise_levels, unipc, unserved_samplers
from worker.engine.sampling.noise_levels import (
    NoiseLevel,
    between_sigmas,
    by_angle,
    by_sigma,
    by_timestep,
)
from worker.engine.sampling.sampler_state import SamplerState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.engine.pipeline import DiffusersScheduler


@dataclass(frozen=True)
class _Sampler:
    """A scheduler class of diffusers and its options."""

    class_name: str
    levels: Callable[[DiffusersScheduler, DiffusersScheduler], list[NoiseLevel]]
    options: dict[str, Any] = field(default_factory=dict)
    #: Prediction types that the class does not support; outputs are converted to v.
    lacks: tuple[str, ...] = ()
    #: With fewer steps the result is noise.
    min_steps: int = 1

    @property
    def flags(self) -> dict[str, Any]:
        """All configuration that distinguishes samplers: the class's defaults, and the options."""
        parameters = self.parameters
        defaults = {n: parameters[n].default for n in _SAMPLER_OPTIONS if n in parameters}
        return defaults | self.options

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the class's `__init__`."""
        return inspect.signature(getattr(diffusers, self.class_name).__init__).parameters


#: Configuration that belongs to the sampler and not to the model: a wire name implies the values of
#: diffusers' class, whatever the model's own scheduler has.
_SAMPLER_OPTIONS = (
    "algorithm_type", "solver_order", "solver_type", "skip_prk_steps", "use_karras_sigmas",
    "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas",
    "lower_order_final", "euler_at_final", "final_sigmas_type", "predict_x0",
)  # fmt: skip
#: A scheduler's `variance_type` for a UNet that has learned it (IDDPM, ADM).
LEARNED_VARIANCE = "learned_range"
_DPMPP = {"algorithm_type": "dpmsolver++"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_KARRAS = {"use_karras_sigmas": True}

SAMPLERS: dict[str, _Sampler] = {
    "ddim": _Sampler("DDIMScheduler", by_timestep),
    "ddpm": _Sampler("DDPMScheduler", by_timestep),
    "pndm": _Sampler("PNDMScheduler", by_timestep, {"skip_prk_steps": True}, ("sample",)),
    "lcm": _Sampler("LCMScheduler", by_timestep),
    "tcd": _Sampler("TCDScheduler", by_timestep),
    "dpmpp_2m": _Sampler("DPMSolverMultistepScheduler", by_sigma, _DPMPP),
    "dpmpp_2m_karras": _Sampler("DPMSolverMultistepScheduler", by_sigma, _DPMPP | _KARRAS),
    "dpmpp_2m_sde": _Sampler("DPMSolverMultistepScheduler", by_sigma, _SDE),
    "dpmpp_2m_sde_karras": _Sampler("DPMSolverMultistepScheduler", by_sigma, _SDE | _KARRAS),
    "dpmpp_2s": _Sampler("DPMSolverSinglestepScheduler", by_sigma, _DPMPP),
    "dpmpp_2s_karras": _Sampler("DPMSolverSinglestepScheduler", by_sigma, _DPMPP | _KARRAS),
    "unipc": _Sampler("UniPCMultistepScheduler", by_sigma),
    "unipc_karras": _Sampler("UniPCMultistepScheduler", by_sigma, _KARRAS),
    "deis": _Sampler("DEISMultistepScheduler", by_sigma),
    "deis_karras": _Sampler("DEISMultistepScheduler", by_sigma, _KARRAS, min_steps=2),
    "lms": _Sampler("LMSDiscreteScheduler", by_sigma),
    "lms_karras": _Sampler("LMSDiscreteScheduler", by_sigma, _KARRAS),
    "euler": _Sampler("EulerDiscreteScheduler", by_sigma),
    "euler_karras": _Sampler("EulerDiscreteScheduler", by_sigma, _KARRAS),
    "euler_a": _Sampler("EulerAncestralDiscreteScheduler", by_sigma, lacks=("sample",)),
    "heun": _Sampler("HeunDiscreteScheduler", by_sigma),
    "heun_karras": _Sampler("HeunDiscreteScheduler", by_sigma, _KARRAS),
    "kdpm2": _Sampler("KDPM2DiscreteScheduler", between_sigmas, lacks=("sample",)),
    "kdpm2_a": _Sampler("KDPM2AncestralDiscreteScheduler", between_sigmas, lacks=("sample",)),
    "ipndm": _Sampler("IPNDMScheduler", by_angle, lacks=("epsilon", "sample"), min_steps=2),
}


def make(
    name: str | None,
    own: DiffusersScheduler,
    num_inference_steps: int,
    strength: float | None = None,
    *,
    on_gpu: bool = False,
) -> SamplerState:
    """A new sampler with that many steps: `name`, or as the model's `own` when None.

    With a `strength` it begins with a picture to which noise was added, and makes only that share
    of the steps, the last ones. diffusers takes milliseconds to configure one, so it is configured
    once and then copied. Raises `UnsupportedSchedulerError` with the supported names, and
    `BadRequestError` where the scheduler does not support this number of steps.
    """
    return _configured(name, own, num_inference_steps, strength, on_gpu=on_gpu).copy()


@lru_cache(maxsize=64)
def _configured(
    name: str | None,
    own: DiffusersScheduler,
    num_inference_steps: int,
    strength: float | None,
    *,
    on_gpu: bool,
) -> SamplerState:
    if name is not None and name not in SAMPLERS:
        raise unserved_samplers.refusal(name, list(SAMPLERS))
    if name is None:
        name, sampler, options = _name_of(own), _of_class(own)[0][1], {}
    else:
        sampler = SAMPLERS[name]
        options = sampler.flags
    scheduler, predictions = _scheduler_of(sampler, own, options)
    _set_timesteps(scheduler, name, num_inference_steps, sampler.min_steps)
    if on_gpu:
        _avoid_waits(scheduler)
    if isinstance(scheduler, diffusers.LMSDiscreteScheduler):
        # Milliseconds of numerical integration for each, of numbers that all copies share.
        scheduler.get_lms_coefficient = cache(scheduler.get_lms_coefficient)
    # As diffusers rounds it.
    steps = num_inference_steps if strength is None else int(num_inference_steps * strength)
    begin = (num_inference_steps - steps) * scheduler.order
    mixing = () if strength is None else tuple(noise_levels.mixing_of(scheduler, name)[begin:])
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise it searches for the first timestep, and of two equal ones finds the second.
        scheduler.set_begin_index(begin)
    levels = tuple(sampler.levels(scheduler, own)[begin:])
    parameters = frozenset(inspect.signature(scheduler.step).parameters)
    constants = frozenset(
        n for n, each in vars(scheduler).items() if isinstance(each, torch.Tensor)
    )
    # diffusers' other schedulers take no variance, whatever their configuration says.
    takes_variance = isinstance(scheduler, diffusers.DDPMScheduler) and (
        scheduler.config.variance_type == LEARNED_VARIANCE
    )
    return SamplerState(
        name, scheduler, steps, begin, levels, mixing, predictions, parameters, constants,
        takes_variance,
    )  # fmt: skip


def _scheduler_of(
    sampler: _Sampler, own: DiffusersScheduler, options: Mapping[str, Any]
) -> tuple[DiffusersScheduler, tuple[str, str]]:
    """One of the sampler's class, configured as the model's own; prediction types of both."""
    prediction = own.config.get("prediction_type", "epsilon")
    used = "v_prediction" if prediction in sampler.lacks else prediction
    changed = dict(options)
    if sampler.levels is by_angle:
        changed["trained_betas"] = None  # it computes its own, and asks for no type
    elif used != prediction:
        changed["prediction_type"] = used
    if "clip_sample" in sampler.parameters and "clip_sample" not in own.config:
        changed["clip_sample"] = False  # the class's default clips latents to -1 … 1
    made = getattr(diffusers, sampler.class_name).from_config(own.config, **changed)
    return made, (prediction, used)


def is_supported(own: DiffusersScheduler) -> bool:
    """Whether a model's own scheduler is of a class whose noise levels are known here."""
    return bool(_of_class(own))


def check_eta(eta: float, scheduler: str) -> None:
    """Refuse an `eta` that the scheduler would ignore."""
    if eta > 0 and scheduler not in ETA_SCHEDULERS:
        what = f"has no meaning for scheduler {scheduler}"
        raise refusal("eta", what, f"{' and '.join(ETA_SCHEDULERS)} only")


def _set_timesteps(scheduler: DiffusersScheduler, name: str, steps: int, min_steps: int) -> None:
    """Set the timesteps, on the host: on a device, each step would wait to read them.

    Raises `BadRequestError` for a number of steps that diffusers or the sampler can't do.
    """
    max_steps = scheduler.config.num_train_timesteps
    reason: str | None = f"it takes {min_steps} to {max_steps}"
    if min_steps <= steps <= max_steps:
        try:
            scheduler.set_timesteps(steps, device="cpu")
            reason = _bad_timesteps(scheduler, steps)
        except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
            reason = str(error)
    if reason is not None:
        what = f"{steps} steps are not possible with {name}: {reason}"
        raise refusal("num_inference_steps", what, f"what {name} takes")


def _bad_timesteps(scheduler: DiffusersScheduler, steps: int) -> str | None:
    """What is wrong with the timesteps that diffusers has set, or None."""
    sigmas = getattr(scheduler, "sigmas", None)
    if steps == 1 and sigmas is not None and sigmas[1] >= sigmas[0]:
        return "its only step has no length"
    if float(scheduler.timesteps.min()) < 0:
        # By rounding in the "trailing" spacing, for 61 and a few others of 1,000. DDIM would read
        # index -1, the noisiest level, and the image would be lost.
        return "diffusers gives the last of them the timestep -1; take one more or less"
    return None


def _avoid_waits(scheduler: DiffusersScheduler) -> None:
    """Have a step do the same without waiting for the GPU."""
    if isinstance(scheduler, diffusers.UniPCMultistepScheduler):
        unipc.compute_on_host(scheduler)
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = host_noise.randn_tensor  # type: ignore[attr-defined]  # for all schedulers of its class


def _of_class(own: DiffusersScheduler) -> list[tuple[str, _Sampler]]:
    """The samplers of the class of a model's own scheduler."""
    return [each for each in SAMPLERS.items() if each[1].class_name == type(own).__name__]


def _name_of(own: DiffusersScheduler) -> str:
    """The wire name of a model's own scheduler; its class's name if none has its options."""
    for name, sampler in _of_class(own):
        if all(own.config.get(key) == value for key, value in sampler.flags.items()):
            return name
    return type(own).__name__
