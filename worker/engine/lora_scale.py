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
    """Multiply the scales of all LoRA layers in `module` by `scale`, for one call; None is 1.

    A compiled module takes a tensor, (), as an input, and is compiled again for each new number.
    diffusers itself divides by the scale afterwards, which loses the former scales if it is 0.
    """
    if scale is None:
        yield
        return
    layers = [each for each in module.modules() if isinstance(each, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling.update({name: each * scale for name, each in layer.scaling.items()})
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
