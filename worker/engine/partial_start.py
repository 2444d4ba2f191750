"""Samplers that begin with a picture: how much noise they add to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from worker.engine.job import refusal

if TYPE_CHECKING:
    from worker.engine.pipeline import DiffusersScheduler


def mixing(scheduler: DiffusersScheduler, name: str) -> list[tuple[float, float]]:
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
