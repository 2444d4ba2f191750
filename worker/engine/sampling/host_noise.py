"""The noise of diffusers' schedulers, drawn on the host without waiting for a GPU."""

from __future__ import annotations

import torch
from diffusers.utils import torch_utils

from worker.engine.device import device_memory


def randn_tensor(
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> torch.Tensor:
    """Diffusers' `randn_tensor`, which does not wait for a GPU if the generator is on the CPU.

    There it is in the worker, so that a seed gives the same picture on every device.
    """
    if not (isinstance(generator, torch.Generator) and generator.device.type == "cpu" and device):
        drawn: torch.Tensor = torch_utils.randn_tensor(shape, generator, device, dtype, layout)
        return drawn
    numbers = torch.randn(shape, generator=generator, dtype=dtype, layout=layout or torch.strided)
    return device_memory.to_device(numbers, device)
