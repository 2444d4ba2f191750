"""UniPC without waits for a GPU: the coefficients of its two updates are computed on the host.

diffusers computes them in each step on the device of the latents: up to 7 waits and 135 kernels,
as `make cuda-dry-run` counts them.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UniPCMultistepScheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.pipeline import DiffusersScheduler


def compute_on_host(scheduler: DiffusersScheduler) -> None:
    """Have a configured scheduler, and its copies, take their coefficients from the host."""
    coefficients = _Coefficients(scheduler)
    scheduler.__class__ = HostUniPC
    scheduler.coefficients = coefficients


class HostUniPC(UniPCMultistepScheduler):
    """diffusers' UniPC, whose updates are sums with known coefficients."""

    coefficients: _Coefficients

    def multistep_uni_p_bh_update(
        self, model_output: torch.Tensor, sample: torch.Tensor, order: int
    ) -> torch.Tensor:
        """The predictor's sample, like `sample`."""
        del model_output  # not converted yet; the converted ones are in `model_outputs`
        outputs = self.model_outputs[-order:]
        return _combined(self.coefficients.predictor(self.step_index, order), [sample, *outputs])

    def multistep_uni_c_bh_update(
        self,
        this_model_output: torch.Tensor,
        last_sample: torch.Tensor,
        this_sample: torch.Tensor,
        order: int,
    ) -> torch.Tensor:
        """The corrector's sample, like `last_sample`."""
        del this_sample  # its value has no effect
        outputs = [*self.model_outputs[-order:], this_model_output]
        factors = self.coefficients.corrector(self.step_index, order)
        return _combined(factors, [last_sample, *outputs])


class _Coefficients:
    """Factors of the sample and the UNet's outputs in both updates, by step and order.

    The updates are linear in them, and depend on nothing but the step: diffusers' own methods,
    applied to unit vectors, give the factors.
    """

    def __init__(self, scheduler: DiffusersScheduler) -> None:
        """Of a scheduler with its timesteps, which is not changed."""
        self._scratch = copy.copy(scheduler)
        self.predictor, self.corrector = cache(self._predictor), cache(self._corrector)

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Coefficients:
        """Copies of a scheduler have the same timesteps."""
        return self

    def _predictor(self, step_index: int, order: int) -> list[float]:
        """Of the sample and the last outputs."""
        sample, *outputs = torch.eye(1 + order).split(1)
        self._go_to(step_index, outputs)
        updated = self._scratch.multistep_uni_p_bh_update(outputs[-1], sample=sample, order=order)
        factors: list[float] = updated[0].tolist()
        return factors

    def _corrector(self, step_index: int, order: int) -> list[float]:
        """Of the last sample, the outputs before, and this output."""
        sample, *outputs, this = torch.eye(2 + order).split(1)
        self._go_to(step_index, outputs)
        updated = self._scratch.multistep_uni_c_bh_update(
            this, last_sample=sample, this_sample=sample, order=order
        )
        factors: list[float] = updated[0].tolist()
        return factors

    def _go_to(self, step_index: int, outputs: list[torch.Tensor]) -> None:
        self._scratch.model_outputs = outputs
        self._scratch._step_index = step_index  # noqa: SLF001  # diffusers has no setter


def _combined(factors: Sequence[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors with factors, in float32, as the first tensor's type."""
    total = tensors[0].float() * factors[0]
    for factor, tensor in zip(factors[1:], tensors[1:], strict=True):
        total = torch.add(total, tensor, alpha=factor)
    return total.to(tensors[0].dtype)
