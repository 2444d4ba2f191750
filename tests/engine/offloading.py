"""A model whose networks share a stand-in for a device. Knows no pytest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.engine.jobs import SPEC
from tests.engine.stand_in_device import Device
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loading import model_loader

if TYPE_CHECKING:
    from tests.engine.jobs import Rounds
    from worker.engine.device.offload import Network
    from worker.engine.loaded_model import LoadedModel


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
