"""Jobs of a model whose networks share a device with room for one: as with room for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.jobs import Rounds, job, latents_of
from tests.engine.offloading import assert_on_device_when_called, offloaded_model
from tests.engine.stand_in_device import on_device
from worker.errors import TaskFailedError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=["model", "swap"])
def offloaded(request: pytest.FixtureRequest) -> Rounds:
    """The bundled model, whose networks share a device that holds one of them at a time."""
    return Rounds(model=offloaded_model(request.param))


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
