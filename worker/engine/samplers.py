"""The samplers by their name on the wire, each made anew for a picture from the model's own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch

from api_contracts.errors import FieldError
from api_contracts.request import ETA_SCHEDULERS
from worker.errors import BadRequestError, UnsupportedSchedulerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class NoiseLevel:
    """One evaluation of the network: z = alpha x0 + sigma eps, variance-preserving."""

    #: What the UNet is told; may lie between two trained timesteps.
    timestep: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class SamplerState:
    """A sampler at work on one picture; everything that a tick reads of it is on the host."""

    name: str
    scheduler: Any
    #: One for each evaluation, in order.
    levels: tuple[NoiseLevel, ...]
    #: What the network predicts, and what the scheduler's `step` wants.
    kinds: tuple[str, str]
    #: Parameters of the scheduler's `step`.
    takes: frozenset[str]
    #: Tensors of the scheduler that no step changes.
    constants: frozenset[str]

    def is_step(self, done: int) -> bool:
        """Whether after `done` evaluations a step is complete, as diffusers counts them."""
        order: int = self.scheduler.order
        warmup = len(self.levels) - self.scheduler.num_inference_steps * order
        return done == len(self.levels) or (done > warmup and done % order == 0)


def _by_timestep(scheduler: Any, _own: Any) -> list[NoiseLevel]:  # noqa: ANN401  # diffusers has no base
    """DDIM and its kin: the level of timestep t is alphas_cumprod[t]."""
    cumulative = scheduler.alphas_cumprod.double()
    return [
        NoiseLevel(float(t), float(cumulative[t] ** 0.5), float((1 - cumulative[t]) ** 0.5))
        for t in scheduler.timesteps.long()
    ]


def _by_sigma(scheduler: Any, _own: Any) -> list[NoiseLevel]:  # noqa: ANN401  # diffusers has no base
    """The i-th evaluation is at sigmas[i] = sigma / alpha, whatever integer t was rounded to."""
    return _levels(scheduler.timesteps, scheduler.sigmas)


def _between_sigmas(scheduler: Any, _own: Any) -> list[NoiseLevel]:  # noqa: ANN401  # diffusers has no base
    """KDPM2: every second evaluation is half-way to the next sigma.

    Its ancestral kind keeps that one place earlier, as its `scale_model_input` has it.
    """
    sigmas, between = scheduler.sigmas.clone(), scheduler.sigmas_interpol
    if isinstance(scheduler, diffusers.KDPM2AncestralDiscreteScheduler):
        between = between.roll(1)
    sigmas[1::2] = between[1::2]
    return _levels(scheduler.timesteps, sigmas)


def _by_angle(scheduler: Any, own: Any) -> list[NoiseLevel]:  # noqa: ANN401  # diffusers has no base
    """IPNDM has noise levels of its own; the UNet is told the timestep at which it knew them."""
    trained = diffusers.DDPMScheduler.from_config(own.config).alphas_cumprod.double()
    cumulative = trained.clamp(min=1e-8).numpy()
    known = np.log(((1 - cumulative) / cumulative) ** 0.5)
    levels = []
    for alpha, sigma in zip(scheduler.alphas[:-1], scheduler.betas[:-1], strict=True):
        ratio = np.log(max(float(sigma), 1e-12) / max(float(alpha), 1e-12))
        timestep = float(np.interp(ratio, known, np.arange(len(known))))
        levels.append(NoiseLevel(timestep, float(alpha), float(sigma)))
    return levels


def _levels(timesteps: Any, sigmas: Any) -> list[NoiseLevel]:  # noqa: ANN401  # tensors of diffusers
    ratios = [float(sigma) for sigma in sigmas[: len(timesteps)]]
    scales = [(ratio**2 + 1) ** -0.5 for ratio in ratios]
    return [
        NoiseLevel(float(t), scale, ratio * scale)
        for t, scale, ratio in zip(timesteps, scales, ratios, strict=True)
    ]


@dataclass(frozen=True)
class _Sampler:
    """A class of diffusers and what it is made with on top of the model's configuration."""

    class_name: str
    levels: Callable[[Any, Any], list[NoiseLevel]]
    options: dict[str, Any] = field(default_factory=dict)
    #: Predictions that diffusers' class does not take; they are converted to v.
    lacks: tuple[str, ...] = ()
    #: With fewer it ends in noise.
    least_steps: int = 1

    @property
    def flags(self) -> dict[str, Any]:
        """Everything of the configuration that makes this sampler what it is."""
        known = self.parameters
        own = {name: known[name].default for name in _SAMPLERS_OWN if name in known}
        return own | self.options

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Of diffusers' class."""
        return inspect.signature(getattr(diffusers, self.class_name).__init__).parameters


#: What in a scheduler's configuration is the sampler and not the model. A name means the values of
#: diffusers' class, whatever the model's own scheduler is set to.
_SAMPLERS_OWN = (
    "algorithm_type", "solver_order", "solver_type", "skip_prk_steps", "use_karras_sigmas",
    "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas",
    "lower_order_final", "euler_at_final", "final_sigmas_type", "predict_x0",
)  # fmt: skip
_DPMPP = {"algorithm_type": "dpmsolver++"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_KARRAS = {"use_karras_sigmas": True}
_ALL = ("epsilon", "sample")

SAMPLERS: dict[str, _Sampler] = {
    "ddim": _Sampler("DDIMScheduler", _by_timestep),
    "ddpm": _Sampler("DDPMScheduler", _by_timestep),
    "pndm": _Sampler("PNDMScheduler", _by_timestep, {"skip_prk_steps": True}, ("sample",)),
    "lcm": _Sampler("LCMScheduler", _by_timestep),
    "tcd": _Sampler("TCDScheduler", _by_timestep),
    "dpmpp_2m": _Sampler("DPMSolverMultistepScheduler", _by_sigma, _DPMPP),
    "dpmpp_2m_karras": _Sampler("DPMSolverMultistepScheduler", _by_sigma, _DPMPP | _KARRAS),
    "dpmpp_2m_sde": _Sampler("DPMSolverMultistepScheduler", _by_sigma, _SDE),
    "dpmpp_2m_sde_karras": _Sampler("DPMSolverMultistepScheduler", _by_sigma, _SDE | _KARRAS),
    "dpmpp_2s": _Sampler("DPMSolverSinglestepScheduler", _by_sigma, _DPMPP),
    "dpmpp_2s_karras": _Sampler("DPMSolverSinglestepScheduler", _by_sigma, _DPMPP | _KARRAS),
    "unipc": _Sampler("UniPCMultistepScheduler", _by_sigma),
    "unipc_karras": _Sampler("UniPCMultistepScheduler", _by_sigma, _KARRAS),
    "deis": _Sampler("DEISMultistepScheduler", _by_sigma),
    "deis_karras": _Sampler("DEISMultistepScheduler", _by_sigma, _KARRAS, least_steps=2),
    "lms": _Sampler("LMSDiscreteScheduler", _by_sigma),
    "lms_karras": _Sampler("LMSDiscreteScheduler", _by_sigma, _KARRAS),
    "euler": _Sampler("EulerDiscreteScheduler", _by_sigma),
    "euler_karras": _Sampler("EulerDiscreteScheduler", _by_sigma, _KARRAS),
    "euler_a": _Sampler("EulerAncestralDiscreteScheduler", _by_sigma, lacks=("sample",)),
    "heun": _Sampler("HeunDiscreteScheduler", _by_sigma),
    "heun_karras": _Sampler("HeunDiscreteScheduler", _by_sigma, _KARRAS),
    "kdpm2": _Sampler("KDPM2DiscreteScheduler", _between_sigmas, lacks=("sample",)),
    "kdpm2_a": _Sampler("KDPM2AncestralDiscreteScheduler", _between_sigmas, lacks=("sample",)),
    "ipndm": _Sampler("IPNDMScheduler", _by_angle, lacks=_ALL, least_steps=2),
}


def make(name: str | None, own: Any, num_inference_steps: int) -> SamplerState:  # noqa: ANN401  # diffusers has no base
    """A new sampler of that many steps: `name`, or the kind of the model's `own` when None.

    Raises `UnsupportedSchedulerError`, which lists the supported names, and `BadRequestError`
    where the diffusers scheduler does not support this number of steps.
    """
    if name is not None and name not in SAMPLERS:
        message = f"scheduler {name!r} is not known; served are {', '.join(SAMPLERS)}"
        raise UnsupportedSchedulerError(message, where="scheduler", served=list(SAMPLERS))
    kind = own.config.get("prediction_type", "epsilon")
    if name is None:
        name, sampler, options = _name_of(own), _kind_of(own), {}
    else:
        sampler = SAMPLERS[name]
        options = sampler.flags
    taken = "v_prediction" if kind in sampler.lacks else kind
    scheduler_class = getattr(diffusers, sampler.class_name)
    told: dict[str, Any] = {} if taken == kind else {"prediction_type": taken}
    if "clip_sample" in sampler.parameters and "clip_sample" not in own.config:
        told["clip_sample"] = False  # the class's own would clip latents to -1 … 1
    if sampler.levels is _by_angle:
        told = {"trained_betas": None}
    scheduler = scheduler_class.from_config(own.config, **options, **told)
    _set_timesteps(scheduler, name, num_inference_steps, sampler.least_steps)
    if hasattr(scheduler, "set_begin_index"):
        # Or it looks for the first timestep, and finds the second where two were rounded alike.
        scheduler.set_begin_index(0)
    levels = tuple(sampler.levels(scheduler, own))
    takes = frozenset(inspect.signature(scheduler.step).parameters)
    constants = frozenset(
        n for n, each in vars(scheduler).items() if isinstance(each, torch.Tensor)
    )
    return SamplerState(name, scheduler, levels, (kind, taken), takes, constants)


def _set_timesteps(scheduler: Any, name: str, number: int, least: int) -> None:  # noqa: ANN401  # diffusers has no base
    """On the host: a timestep that lies on the device would be read from it in every step."""
    try:
        most = scheduler.config.num_train_timesteps
        if not least <= number <= most:
            raise ValueError(f"it takes {least} to {most}")  # noqa: TRY301  # as below
        scheduler.set_timesteps(number, device="cpu")
        sigmas = getattr(scheduler, "sigmas", None)
        if number == 1 and sigmas is not None and sigmas[1] >= sigmas[0]:
            raise ValueError("its only step has no length")  # noqa: TRY301  # as below
        if float(scheduler.timesteps.min()) < 0:
            # Rounding in diffusers' "trailing" spacing, for 61 and a few others of 1,000: DDIM
            # would take it as the noisiest, and the picture would be lost.
            message = "diffusers gives the last of them the timestep -1; take one more or less"
            raise ValueError(message)  # noqa: TRY301  # told as diffusers' own refusals are
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
        what = f"{number} steps are not possible with {name}: {error}"
        fault = FieldError(where="num_inference_steps", what=what[:300], limit=f"what {name} takes")
        raise BadRequestError(fault) from error


def is_served(own: Any) -> bool:  # noqa: ANN401  # diffusers has no base
    """Whether a model's own scheduler is of a kind whose noise levels are known here."""
    return any(each.class_name == type(own).__name__ for each in SAMPLERS.values())


def check_eta(eta: float, scheduler: str) -> None:
    """Refuse an `eta` that the scheduler would not use."""
    if eta > 0 and scheduler not in ETA_SCHEDULERS:
        what = f"has no meaning for scheduler {scheduler}"
        raise BadRequestError(
            FieldError(where="eta", what=what, limit=f"{' and '.join(ETA_SCHEDULERS)} only")
        )


def _kind_of(own: Any) -> _Sampler:  # noqa: ANN401  # diffusers has no base
    return next(each for each in SAMPLERS.values() if each.class_name == type(own).__name__)


def _name_of(own: Any) -> str:  # noqa: ANN401  # diffusers has no base
    for name, sampler in SAMPLERS.items():
        if sampler.class_name == type(own).__name__ and all(
            own.config.get(key) == value for key, value in sampler.flags.items()
        ):
            return name
    return type(own).__name__
