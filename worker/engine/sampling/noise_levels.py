"""The noise level of each evaluation, read from a configured scheduler in one of four ways.

And how much noise a scheduler adds to a picture there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import diffusers
import numpy as np
import torch

from worker.engine.jobs.job import refusal

if TYPE_CHECKING:
    from worker.engine.pipeline import DiffusersScheduler


@dataclass(frozen=True)
class NoiseLevel:
    """The noise level of one UNet evaluation: z = alpha x0 + sigma eps, variance-preserving."""

    #: Input of the UNet; may lie between two trained timesteps.
    timestep: float
    alpha: float
    sigma: float


def by_timestep(scheduler: DiffusersScheduler, _own: DiffusersScheduler) -> list[NoiseLevel]:
    """DDIM and its like: alpha^2 at timestep t is alphas_cumprod[t]."""
    cumulative = scheduler.alphas_cumprod.double()
    return [
        NoiseLevel(float(t), float(cumulative[t] ** 0.5), float((1 - cumulative[t]) ** 0.5))
        for t in scheduler.timesteps.long()
    ]


def by_sigma(scheduler: DiffusersScheduler, _own: DiffusersScheduler) -> list[NoiseLevel]:
    """Evaluation i is at sigmas[i] = sigma / alpha, whatever integer its timestep is rounded to."""
    return _levels(scheduler.timesteps, scheduler.sigmas)


def between_sigmas(scheduler: DiffusersScheduler, _own: DiffusersScheduler) -> list[NoiseLevel]:
    """KDPM2: every second evaluation is half-way to the next sigma.

    The ancestral one keeps that sigma one place earlier, as its `scale_model_input` reads it.
    """
    sigmas, between = scheduler.sigmas.clone(), scheduler.sigmas_interpol
    if isinstance(scheduler, diffusers.KDPM2AncestralDiscreteScheduler):
        between = between.roll(1)
    sigmas[1::2] = between[1::2]
    return _levels(scheduler.timesteps, sigmas)


def by_angle(scheduler: DiffusersScheduler, own: DiffusersScheduler) -> list[NoiseLevel]:
    """IPNDM has noise levels of its own; the timestep is where the UNet was trained at that level.

    It is interpolated linearly in log(sigma / alpha).
    """
    trained = diffusers.DDPMScheduler.from_config(own.config).alphas_cumprod.double()
    cumulative = trained.clamp(min=1e-8).numpy()
    log_ratios = np.log(((1 - cumulative) / cumulative) ** 0.5)
    levels = []
    for alpha, sigma in zip(scheduler.alphas[:-1], scheduler.betas[:-1], strict=True):
        log_ratio = np.log(max(float(sigma), 1e-12) / max(float(alpha), 1e-12))
        timestep = float(np.interp(log_ratio, log_ratios, np.arange(len(log_ratios))))
        levels.append(NoiseLevel(timestep, float(alpha), float(sigma)))
    return levels


def _levels(timesteps: torch.Tensor, sigmas: torch.Tensor) -> list[NoiseLevel]:
    """Levels from sigma / alpha, of which diffusers has one more than timesteps."""
    levels = []
    for timestep, sigma in zip(timesteps, sigmas[: len(timesteps)], strict=True):
        ratio = float(sigma)
        alpha = (ratio**2 + 1) ** -0.5
        levels.append(NoiseLevel(float(timestep), alpha, ratio * alpha))
    return levels


def mixing_of(scheduler: DiffusersScheduler, name: str) -> list[tuple[float, float]]:
    """The weights of a picture and of noise that diffusers adds, at each evaluation."""
    if not hasattr(scheduler, "add_noise"):
        raise refusal("scheduler", f"{name} can't start from an image", "another one")
    one, none, weights = torch.ones(1), torch.zeros(1), []
    for number, timestep in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(number)
        at = timestep.view(1)
        of_picture, of_noise = (
            scheduler.add_noise(one, none, at),
            scheduler.add_noise(none, one, at),
        )
        weights.append((float(of_picture), float(of_noise)))
    return weights
