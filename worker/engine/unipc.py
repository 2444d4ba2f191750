"""UniPC without waits for a GPU: the coefficients of its two updates are computed on the host.

diffusers computes them in each step on the device of the latents: up to 7 waits and 135 kernels,
as `make cuda-dry-run` counts them.
"""

from __future__ import annotations

import copy
from functools import cache
from types import MethodType
from typing import TYPE_CHECKING

import torch
from diffusers import UniPCMultistepScheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.pipeline import DiffusersScheduler


def compute_on_host(scheduler: DiffusersScheduler) -> None:
    """Replace the updates of a configured scheduler, and of its copies.

    Both updates are linear in the sample and the UNet's outputs, and their coefficients depend on
    the step alone. diffusers' own methods, applied to unit vectors, give the coefficients.
    """
    scratch = copy.copy(scheduler)

    @cache
    def predictor(step_index: int, order: int) -> list[float]:
        sample, *outputs = torch.eye(1 + order).split(1)
        scratch._step_index, scratch.model_outputs = step_index, outputs  # noqa: SLF001  # diffusers has no setter
        updated = UniPCMultistepScheduler.multistep_uni_p_bh_update(
            scratch, outputs[-1], sample=sample, order=order
        )
        return _coefficients(updated)

    @cache
    def corrector(step_index: int, order: int) -> list[float]:
        sample, *outputs, this = torch.eye(2 + order).split(1)
        scratch._step_index, scratch.model_outputs = step_index, outputs  # noqa: SLF001  # as above
        updated = UniPCMultistepScheduler.multistep_uni_c_bh_update(
            scratch, this, last_sample=sample, this_sample=sample, order=order
        )
        return _coefficients(updated)

    def predict(
        self: DiffusersScheduler, model_output: torch.Tensor, sample: torch.Tensor, order: int
    ) -> torch.Tensor:
        del model_output  # not converted yet; the converted ones are in `model_outputs`
        outputs = self.model_outputs[-order:]
        return _combined(predictor(self.step_index, order), [sample, *outputs])

    def correct(
        self: DiffusersScheduler,
        this_model_output: torch.Tensor,
        last_sample: torch.Tensor,
        this_sample: torch.Tensor,
        order: int,
    ) -> torch.Tensor:
        del this_sample  # its value has no effect
        outputs = [*self.model_outputs[-order:], this_model_output]
        return _combined(corrector(self.step_index, order), [last_sample, *outputs])

    # Methods, which a deep copy of the scheduler binds to the copy.
    scheduler.multistep_uni_p_bh_update = MethodType(predict, scheduler)
    scheduler.multistep_uni_c_bh_update = MethodType(correct, scheduler)


def _coefficients(updated: torch.Tensor) -> list[float]:
    coefficients: list[float] = updated[0].tolist()
    return coefficients


def _combined(coefficients: Sequence[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors with coefficients, in float32, as the first tensor's type."""
    total = tensors[0].float() * coefficients[0]
    for factor, tensor in zip(coefficients[1:], tensors[1:], strict=True):
        total = torch.add(total, tensor, alpha=factor)
    return total.to(tensors[0].dtype)
