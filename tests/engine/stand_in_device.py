"""A stand-in for a device that networks share: its memory is counted."""

from __future__ import annotations

import torch
from torch import nn

from worker.engine.device.offload import Network, Residency

#: Bytes of the stand-in's weights: 10 x 10 floats, a bias and a buffer of 10 each.
WEIGHTS = 4 * 120
#: Bytes that each network's calls need.
WORK = 100


class Device:
    """Memory of a device: what is on it is counted, the tensors stay where they are."""

    def __init__(self, total_bytes: int, *, keeps: bool = True) -> None:
        self.total_bytes, self.uploads, self.pinned = total_bytes, 0, 0
        self.present: list[Network] = []
        self.residency = Residency(torch.device("cpu"), self.free_bytes, WORK, keeps=keeps)

    def free_bytes(self) -> int:
        """What the networks that are there leave."""
        return self.total_bytes - sum(
            each.weights_bytes for each in self.present if each.is_on_device
        )

    def network(self, module: nn.Module | None = None) -> Network:
        """One more network, on the host."""
        made = Network(module or layer(), pin=self.pin)
        self.present.append(made)
        return made

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the tensor, as pinned memory would be."""
        self.pinned += 1
        return tensor.clone()


def layer() -> nn.Module:
    module = nn.Linear(10, 10)
    module.register_buffer("running", torch.zeros(10))
    return module


def on_device(*networks: Network) -> list[bool]:
    return [each.is_on_device for each in networks]
