"""Jobs of a model whose networks share a device with room for one: as with room for all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.jobs import SPEC, Rounds, job, latents_of
from tests.engine.stand_in_device import Device, on_device
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loading import model_loader
from worker.errors import TaskFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.device.offload import Network


@pytest.fixture(params=["model", "swap"])
def offloaded(request: pytest.FixtureRequest) -> Rounds:
    """The bundled model, whose networks share a device that holds one of them at a time."""
    device = Device(0, keeps=request.param == "model")
    loaded = model_loader.load(SPEC, "cpu", "none")
    names = StableDiffusion.networks
    networks = {name: device.network(getattr(loaded.pipeline, name)) for name in names}
    model = replace(loaded, offload=request.param, residency=device.residency, networks=networks)
    return Rounds(model=model)


@pytest.mark.parametrize("output_type", ["png", "latent"])
def test_jobs_are_the_same_with_offload(
    offloaded: Rounds, make: Callable[..., Any], output_type: str
) -> None:
    """Every network is on the device when it is called, whatever has moved before."""
    assert_on_device_when_called(offloaded)
    futures = [
        offloaded.submit(job(output_type=output_type, seeds=(seed,), preview_every=1))
        for seed in (1, 2)
    ]
    offloaded.run()
    for seed, future in enumerate(futures, start=1):
        ours, alone = future.result(timeout=0), make(output_type=output_type, seeds=(seed,))
        if output_type == "latent":
            assert torch.allclose(latents_of(ours), latents_of(alone), atol=1e-3)
    offloaded.runners.make_room()
    assert not any(on_device(*offloaded.runner.model.networks.values()))
    assert offloaded.result(job()).images


def test_a_job_alone_that_is_out_of_memory_is_tried_again(offloaded: Rounds) -> None:
    """A job alone that is out of memory is tried once more, after the other networks left."""
    unet, calls = offloaded.pipe.unet, list[bool]()
    forward = unet.forward

    def once(*args: Any, **kwargs: Any) -> Any:
        calls.append(True)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return forward(*args, **kwargs)

    unet.forward = once
    assert offloaded.result(job()).images
    unet.forward = always_full
    with pytest.raises(TaskFailedError) as failed:
        offloaded.result(job())
    assert failed.value.code == "out_of_memory"


def always_full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError


def assert_on_device_when_called(rounds: Rounds) -> None:
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
