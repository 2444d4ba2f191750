"""Networks that share a device: which are on it, and what moves. The device is a stand-in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.stand_in_device import WEIGHTS, WORK, Device, layer, on_device
from worker.engine.device.offload import Network


def test_they_stay_where_there_is_room() -> None:
    """Each network moves once, and its weights are pinned on the host by no move."""
    device = Device(3 * WEIGHTS + WORK)
    networks = [device.network() for _ in range(3)]
    for each in networks * 3:
        device.residency.need(each)
    assert on_device(*networks) == [True] * 3
    assert device.pinned == 0
    assert device.residency.has_room(networks[0])


def test_the_least_recently_used_makes_room() -> None:
    """The least recently used networks leave, only as many as another needs with its calls."""
    device = Device(2 * WEIGHTS + WORK)
    a, b, c = (device.network() for _ in range(3))
    for each in (a, b, a, c):
        device.residency.need(each)
    assert on_device(a, b, c) == [True, False, True]
    c.work_bytes = WEIGHTS + WORK
    device.residency.need(a)
    device.residency.need(c)
    assert on_device(a, b, c) == [False, False, True]
    device.residency.need(a)
    assert on_device(a, b, c) == [True, False, True]
    assert not device.residency.has_room(c)


def test_one_that_fits_nowhere_is_tried_alone() -> None:
    """A network for which the device has no room is tried there alone."""
    device = Device(WEIGHTS)
    a, b = device.network(), device.network()
    for each in (a, b, a):
        device.residency.need(each)
        assert on_device(a, b) == [each is a, each is b]


def test_swap_keeps_one_at_a_time() -> None:
    """With `swap` one network at a time is on the device, however much room there is."""
    device = Device(100 * WEIGHTS, keeps=False)
    a, b = device.network(), device.network()
    for each in (a, b, a):
        device.residency.need(each)
        assert on_device(a, b) == [each is a, each is b]
    device.residency.clear()
    assert on_device(a, b) == [False, False]


def test_weights_are_the_same_after_any_move() -> None:
    """Weights are the same bits after any move, and are pinned once, when they first leave."""
    device = Device(WEIGHTS)
    module = layer()
    before = {name: each.clone() for name, each in module.state_dict().items()}
    network, other = device.network(module), device.network()
    for each in (network, other) * 3:
        device.residency.need(each)
        after = module.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
    assert device.pinned == 2 * len(before)


def test_weights_that_changed_their_precision_leave_in_it() -> None:
    """A VAE that decodes in float32 from now on does so after a move, too."""
    device = Device(WEIGHTS)
    module = layer().half()
    network = device.network(module)
    device.residency.need(network)
    module.float()
    device.residency.clear()
    assert {each.dtype for each in module.parameters()} == {torch.float32}
    device.residency.need(network)
    assert {each.dtype for each in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("keeps", [True, False])
def test_an_upload_that_fails_changes_nothing(keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that runs out of memory half-way leaves the network on the host, and usable."""
    device = Device(WEIGHTS, keeps=keeps)
    a, module = device.network(), layer()
    b = device.network(module)
    before = {name: each.clone() for name, each in module.state_dict().items()}
    device.residency.need(a)
    copied, copies = Network._copied, list[None]()

    def fails(*given: Any) -> torch.Tensor:
        copies.append(None)
        if len(copies) == 2:
            raise torch.OutOfMemoryError
        return copied(*given)

    monkeypatch.setattr(Network, "_copied", fails)
    with pytest.raises(torch.OutOfMemoryError):
        device.residency.need(b)
    monkeypatch.undo()
    assert on_device(a, b) == [False, False]
    for each in (a, b, a):
        device.residency.need(each)
        assert on_device(a, b) == [each is a, each is b]
    device.residency.clear()
    device.residency.clear()
    assert on_device(a, b) == [False, False]
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


def test_weights_that_can_not_be_pinned_move_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Weights that the host can't pin move all the same, and pinning is tried once."""
    device, tried = Device(WEIGHTS), list[None]()

    def pin(_: torch.Tensor) -> torch.Tensor:
        tried.append(None)
        raise RuntimeError("cannot lock memory")

    network = Network(layer(), pin=pin)
    for _ in range(2):
        device.residency.need(network)
        device.residency.clear()
    assert len(tried) == 1
    assert "not pinned" in caplog.text


def test_an_evicted_model_is_forgotten() -> None:
    """An evicted network is forgotten: nothing moves it any more."""
    device = Device(3 * WEIGHTS + WORK)
    a, b = device.network(), device.network()
    device.residency.need(a)
    device.residency.need(b)
    device.residency.forget(a)
    device.residency.clear()
    assert on_device(a, b) == [True, False]


def test_weights_that_come_and_go_on_the_device_are_kept_right() -> None:
    """Weights that come, go or change their names while a network is there move as they are."""
    device = Device(2 * WEIGHTS)
    base, lora = nn.Linear(10, 10), nn.Linear(3, 3)
    module = nn.ModuleDict({"layer": base})
    network, other = device.network(module), device.network()
    device.residency.need(network)
    before, added = base.weight.clone(), lora.weight.clone()
    module["layer"] = nn.ModuleDict({"base_layer": base, "lora": lora})
    device.residency.clear()
    assert torch.equal(base.weight, before)
    assert torch.equal(lora.weight, added)
    device.residency.need(network)
    module["layer"] = nn.ModuleDict({"base_layer": base})
    device.residency.need(other)
    device.residency.clear()
    device.residency.need(network)
    assert torch.equal(base.weight, before)
