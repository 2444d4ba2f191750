"""LoRA files with random weights, for the layers that most files have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Of the random weights: those that most files have.
RANK = 16
#: Standard deviation of the random weights.
_DEVIATION = 0.02
#: Ends of the layers' names: of a UNet's transformer blocks, and of a text encoder's.
_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "q_proj", "v_proj")


def save(networks: Mapping[str, nn.Module], folder: Path, count: int) -> dict[str, Path]:
    """Files for the linear layers of networks, by the names of adapters; the same each time.

    `networks` have their names in the pipeline; their weights may have no data.
    """
    shapes = {
        f"{network}.{name}": each.weight.shape
        for network, module in networks.items()
        for name, each in module.named_modules()
        if isinstance(each, nn.Linear) and name.endswith(_LAYERS)
    }
    files = {f"a{number}": folder / f"a{number}.safetensors" for number in range(count)}
    for number, file in enumerate(files.values()):
        dice = torch.Generator().manual_seed(number)
        tensors = {}
        for name, (out, into) in shapes.items():
            for half, shape in (("A", (RANK, into)), ("B", (out, RANK))):
                drawn = torch.randn(shape, generator=dice, device="cpu") * _DEVIATION
                tensors[f"{name}.lora_{half}.weight"] = drawn
        safetensors.torch.save_file(tensors, file)
    return files
