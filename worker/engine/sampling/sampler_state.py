"""The sampler of one image: a scheduler of diffusers, and what a round reads of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from worker.engine.pipeline import DiffusersScheduler
    from worker.engine.sampling.noise_levels import NoiseLevel


@dataclass(frozen=True)
class SamplerState:
    """The sampler of one image. All numbers that a round reads are on the host."""

    name: str
    scheduler: DiffusersScheduler
    #: Steps that are made, and the evaluations before the first of them that are left out.
    steps: int
    begin: int
    #: One for each evaluation, in order.
    levels: tuple[NoiseLevel, ...]
    #: At each evaluation, the weights of a picture and of noise; empty for images from noise.
    mixing: tuple[tuple[float, float], ...]
    #: Prediction types: of the UNet, and of what the scheduler's `step` takes.
    predictions: tuple[str, str]
    #: Names of the parameters of the scheduler's `step`.
    step_parameters: frozenset[str]
    #: Names of the scheduler's tensors that no step changes.
    constants: frozenset[str]
    #: Whether `step` takes the variance that a UNet has learned, as more channels.
    takes_variance: bool = False

    def copy(self) -> SamplerState:
        """The same with a scheduler of its own; what no step changes is shared."""
        shared = [getattr(self.scheduler, name) for name in self.constants]
        memo = {id(each): each for each in (self.scheduler.config, *shared)}
        return replace(self, scheduler=copy.deepcopy(self.scheduler, memo))

    def timestep(self, evaluation: int) -> torch.Tensor:
        """The scheduler's timestep of an evaluation."""
        timestep: torch.Tensor = self.scheduler.timesteps[self.begin + evaluation]
        return timestep

    def is_step(self, evaluations: int) -> bool:
        """Whether evaluation number `evaluations` completes a step, as diffusers counts steps."""
        order: int = self.scheduler.order
        warmup = len(self.levels) - self.steps * order
        is_last = evaluations == len(self.levels)
        return is_last or (evaluations > warmup and evaluations % order == 0)
