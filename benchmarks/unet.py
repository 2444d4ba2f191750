"""UNet calls of a chosen number of rows, with nothing of ours around them."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks import model as models

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.model import Model

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def load(model: Model) -> Any:  # noqa: ANN401  # diffusers has no types
    """The model's UNet on its device."""
    models.silence_libraries()
    unet = UNet2DConditionModel.from_pretrained(
        model.path / "unet", dtype=model.dtype, use_safetensors=True, local_files_only=True
    )
    return unet.to(model.device).eval()


def inputs(model: Model, unet: Any, rows: int) -> Inputs:  # noqa: ANN401  # diffusers has no types
    """Latents, a timestep for each row, and embeddings."""
    place: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    side, channels, width = (
        model.latent_side,
        unet.config.in_channels,
        unet.config.cross_attention_dim,
    )
    return (
        torch.randn(rows, channels, side, side, **place),
        torch.arange(rows, device=model.device) % 1000,
        torch.randn(rows, model.tokens, width, **place),
    )


def seconds(
    call: Callable[[], object],
    device: str,
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median time of a call that has been made twice before."""
    for _ in range(2):
        call()
    times = []
    for _ in range(runs):
        _finish(device)
        began_s = clock()
        call()
        _finish(device)
        times.append(clock() - began_s)
    return median(times)


def _finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
