"""Tasks with LoRA adapters pass the dry run of CUDA, and what is wrong with them is found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks import lora
from benchmarks.cuda_dry_run import dry_run, models, row_adapters, scenes
from benchmarks.cuda_dry_run.tally import Tally
from tests.engine import lora_files
from tests.engine.dry_runs import found_with
from tests.engine.jobs import SPEC
from worker.engine import row_adapters as engine_adapters
from worker.engine.loading import adapters, model_loader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cuda_dry_run.device import FakeCuda

#: Adapters of both tasks of a round: none, and two, at two scales.
MIXES = {"none": ((),), "two": ((("a0", 1.0), ("a1", -0.3)),)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for the bundled UNet, used once: peft's imports are outside of the tests' times."""
    model = model_loader.load(SPEC, "cpu", "none")
    made = lora.save({"unet": model.pipeline.unet}, tmp_path_factory.mktemp("lora"), 1)
    model.adapters.load(model.pipeline, lora_files.with_adapters(SPEC, made), ["a0"], (), 1)
    return made


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rounds and files than the command has."""
    for name, value in (("MIXES", MIXES), ("FILES", 2), ("STEPS", 1)):
        monkeypatch.setattr(row_adapters, name, value)


@pytest.fixture
def device() -> Iterator[FakeCuda]:
    """The simulated device."""
    with dry_run.engine_on_fake_cuda() as fake:
        yield fake


def run(device: FakeCuda) -> row_adapters.Found:
    """Two tasks of each mix on the bundled model; shown is the fullest round."""

    def fullest(tallies: list[Tally]) -> Tally:
        rounds = [each for each in tallies if each.kind.startswith("round")]
        return max(rounds, key=lambda each: each.launched, default=Tally("no round"))

    return row_adapters.run(device, models.load("bundled"), fullest, 2)


def test_a_task_with_an_adapter(files: dict[str, Path]) -> None:
    """A task's adapter is loaded and used without a fault."""
    few = {"num_inference_steps": 1, "sag_scale": 0.0, "guidance_scale": 1.0}
    job = scenes.job(0, "ddim", loras=(("a0", 0.5),), output_type="latent", **few)
    assert found_with([scenes.Arrival(0, job)], adapters=files) == []


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_rows_with_adapters(device: FakeCuda) -> None:
    """Rows of none and of two: no fault, no wait in a round, nothing left of those unloaded."""
    found = run(device)
    assert [*map(str, device.faults), *found.errors] == []
    none, two = found.rounds.values()
    assert [*none.waits, *two.waits] == []
    assert none.launched < two.launched
    assert found.loaded_bytes > 0


def _pageable(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = SimpleNamespace(to_device=lambda tensor, at: tensor.to(at))
    monkeypatch.setattr(engine_adapters, "device_memory", copied)


def _on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    load = adapters.load

    def loaded(pipeline: Any, spec: Any, name: str) -> None:
        load(pipeline, spec, name)
        for layer in adapters.layers(pipeline, name)[pipeline.unet]:
            half = layer.lora_B[adapters.in_peft(name)]
            half.weight = torch.nn.Parameter(torch.zeros(half.weight.shape), requires_grad=False)

    monkeypatch.setattr(adapters, "load", loaded)


def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "unload", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (_pageable, "the host waits for the device: aten._to_copy.default to the device, from pag"),
        (_on_the_host, "rows with adapters: tensors on several devices: aten."),
        (_kept, "bytes are left of adapters that were unloaded"),
    ],
)
def test_broken_adapters_are_found(
    monkeypatch: pytest.MonkeyPatch, device: FakeCuda, broken: Any, what: str
) -> None:
    """Indices that are not pinned, weights on the host, and weights that stay are each found."""
    broken(monkeypatch)
    found = run(device)
    assert any(what in each for each in [*map(str, device.faults), *found.errors])
