"""Scales the LoRA weights of a module for one call, by a number or by a tensor."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from peft.tuners.lora import LoraLayer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn


@contextmanager
def lora_scaled(module: nn.Module, scale: float | torch.Tensor | None) -> Iterator[None]:
    """Multiply the scales of active LoRA weights in `module` by `scale`, for one call; None is 1.

    A compiled module takes a tensor, (), as an input, and is compiled again for each new number.
    diffusers itself divides by the scale afterwards, which loses the former scales if it is 0.
    """
    if scale is None:
        yield
        return
    layers = [each for each in module.modules() if isinstance(each, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        active = [name for name in layer.active_adapters if name in layer.scaling]
        layer.scaling.update({name: layer.scaling[name] * scale for name in active})
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
