"""The noise level of each evaluation of a scheduler of diffusers, for the plain loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch


@dataclass(frozen=True)
class Level:
    """Noise level of the UNet's input `z = a x0 + s noise`, and its timestep."""

    timestep: torch.Tensor
    a: float
    s: float


def level_of(pipe: Any, scheduler: Any, number: int) -> Level:
    """The noise level at the scheduler's evaluation `number`."""
    t = scheduler.timesteps[number]
    if isinstance(scheduler, diffusers.IPNDMScheduler):
        a, s = float(scheduler.alphas[number]), float(scheduler.betas[number])
        times, log_sigmas = training_levels(pipe)
        time = np.interp(np.log(s / max(a, 1e-8)), log_sigmas, times)
        return Level(torch.tensor(time, dtype=torch.float32), a, s)
    if not hasattr(scheduler, "sigmas"):
        alpha = float(scheduler.alphas_cumprod[t])
        return Level(t, alpha**0.5, (1 - alpha) ** 0.5)
    sigma = scheduler.sigmas[number]
    if number % 2 and isinstance(scheduler, diffusers.KDPM2DiscreteScheduler):
        sigma = scheduler.sigmas_interpol[number]
    if number % 2 and isinstance(scheduler, diffusers.KDPM2AncestralDiscreteScheduler):
        sigma = scheduler.sigmas_interpol[number - 1]
    a = (float(sigma) ** 2 + 1) ** -0.5
    return Level(t, a, float(sigma) * a)


def training_levels(pipe: Any) -> tuple[np.ndarray, np.ndarray]:
    """The times that the model was trained at, and log sigma of each."""
    alphas = diffusers.DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.double()
    return np.arange(float(len(alphas))), (0.5 * ((1 - alphas) / alphas).log()).numpy()
