"""LoRA by request with offload: adapters move with their networks. The device is a stand-in."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import pytest
import torch

from tests.engine import lora_files
from tests.engine.jobs import SPEC, Rounds, job, latents_of
from tests.engine.offloading import assert_on_device_when_called, offloaded_model
from worker.engine.loading import adapters

if TYPE_CHECKING:
    from pathlib import Path

    from worker.config.models import ModelSpec

#: Sets of adapters of which two may be loaded at once; the last but one unloads `ink`.
SETS = (("ink",), ("oil", "ink"), ("oil",), ("wax",), ("ink", "wax"))


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """The bundled model with three adapters of UNet and text encoder, without offload."""
    folder, pipe = tmp_path_factory.mktemp("lora"), Rounds().pipe
    for seed, name in enumerate(("ink", "oil", "wax")):
        made = lora_files.layers(pipe, seed, texts=lora_files.TEXTS)
        lora_files.save(folder / f"{name}.safetensors", made)
    return Rounds(spec_of(folder), max_adapters=2)


def spec_of(folder: Path) -> ModelSpec:
    """The bundled model with the files of a folder as adapters."""
    return lora_files.with_adapters(SPEC, {each.stem: each for each in folder.iterdir()})


@pytest.mark.parametrize(("mode", "total_bytes"), [("model", 0), ("swap", 0), ("model", 2**40)])
def test_adapters_move_with_their_networks(beside: Rounds, mode: str, total_bytes: int) -> None:
    """Jobs give the bits that they give without offload; nothing is left of what was unloaded.

    Adapters come and go while their networks are on the host, and while they are on the device;
    on a large one they stay.
    """
    rounds = Rounds(beside.spec, model=offloaded_model(mode, total_bytes), max_adapters=2)
    assert_on_device_when_called(rounds)
    old: list[weakref.ref[torch.Tensor]] = []
    for names in SETS:
        wanted = job(loras=tuple((name, 0.7) for name in names))
        assert torch.equal(latents_of(rounds.result(wanted)), latents_of(beside.result(wanted)))
        if names == ("ink",):
            old = [weakref.ref(each) for each in weights(rounds, "ink")]
        assert all((each() is None) == (names in SETS[3:]) for each in old)
    assert old


def weights(rounds: Rounds, name: str) -> list[torch.Tensor]:
    """Those of an adapter in all networks."""
    layers = [each for some in adapters.layers(rounds.pipe, name).values() for each in some]
    return [
        half[adapters.in_peft(name)].weight
        for each in layers
        for half in (each.lora_A, each.lora_B)
    ]
