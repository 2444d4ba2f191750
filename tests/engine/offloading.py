"""Networks that share a stand-in for a device. Knows no pytest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tests.engine.jobs import SPEC
from worker.engine.device.offload import Network, Residency
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loading import model_loader

if TYPE_CHECKING:
    from tests.engine.jobs import Rounds
    from worker.engine.loaded_model import LoadedModel

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


def offloaded_model(mode: str, total_bytes: int = 0) -> LoadedModel:
    """The bundled model, whose networks share a device; unless given it holds one at a time."""
    device = Device(total_bytes, keeps=mode == "model")
    loaded = model_loader.load(SPEC, "cpu", "none")
    names = StableDiffusion.networks
    networks = {name: device.network(getattr(loaded.pipeline, name)) for name in names}
    return replace(loaded, offload=mode, residency=device.residency, networks=networks)


def assert_on_device_when_called(rounds: Rounds) -> None:
    """From now on no network of a model may be called while it is on the host."""
    networks = rounds.runner.model.networks
    for name in StableDiffusion.networks:
        module = getattr(rounds.pipe, name)
        for method in ("forward", "decode", "encode"):
            if hasattr(module, method):
                _watch(module, method, networks[name])


def _watch(module: Any, method: str, network: Network) -> None:
    call = getattr(module, method)

    def watched(*args: Any, **kwargs: Any) -> Any:
        assert network.is_on_device, f"{type(module).__name__}.{method} on the host"
        return call(*args, **kwargs)

    setattr(module, method, watched)
