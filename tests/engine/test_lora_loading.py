"""How LoRA files are loaded: whose alphas, and which failures may pass."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from tests.engine import lora_files, oracle
from tests.engine.diffusers_alone import bare
from tests.engine.jobs import SPEC, Rounds, assert_close, job, latents_of
from worker.config.models import Lora
from worker.engine.denoising import row_adapters
from worker.engine.device import device_errors
from worker.engine.loading import adapters
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

INK = job(loras=(("ink", 1.0),))


def by_request(path: Path) -> Rounds:
    """The bundled model with a file as the adapter `ink`."""
    return Rounds(lora_files.with_adapters(SPEC, {"ink": path}))


def own(path: Path) -> Rounds:
    """The bundled model with a file as its own LoRA."""
    return Rounds(SPEC.model_copy(update={"lora": (Lora(path=str(path)),)}))


def failure(rounds: Rounds) -> ModelLoadError:
    """The error of a job with the adapter `ink`."""
    future = rounds.submit(INK)
    rounds.run()
    error = future.exception(timeout=0)
    assert isinstance(error, ModelLoadError)
    return error


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    """A LoRA file of the bundled model."""
    path = tmp_path / "ink.safetensors"
    lora_files.save(path, lora_files.layers(bare(SPEC.path), 0))
    return path


def test_a_layer_without_alpha_has_that_of_its_rank(tmp_path: Path) -> None:
    """In a file of kohya's with alphas of some layers, the others' weights count as they are."""
    pipe = bare(SPEC.path)
    kinds = {"unet": f"{lora_files.ATTENTION}|{lora_files.CONVOLUTIONS}", "texts": lora_files.TEXTS}
    made = lora_files.layers(pipe, 0, **kinds)
    path = tmp_path / "ink.safetensors"
    lora_files.save(path, made, "kohya")
    tensors = safetensors.torch.load_file(path)
    meant = []
    for number, layer in enumerate(made):
        names = lora_files.named("kohya", layer)
        if number % 5 == 0:
            (alpha,) = (name for name in names if name.endswith(".alpha"))
            del tensors[alpha]
        meant.append(lora_files.without_alpha(layer) if number % 5 == 0 else layer)
    safetensors.torch.save_file(tensors, path)
    lora_files.merge(pipe, meant, 1.0)
    assert_close(latents_of(by_request(path).result(INK)), oracle.alone(pipe, INK))
    assert_close(latents_of(own(path).result(job())), oracle.alone(pipe, job()))


def test_a_file_that_was_replaced_is_checked_again(
    ink: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An adapter is of the model when it is loaded, not only when the model is.

    The log has the time that it took.
    """
    rounds = by_request(ink)
    tensors = safetensors.torch.load_file(ink)
    renamed = {name.replace("mid_block", "mid_block.x"): t for name, t in tensors.items()}
    safetensors.torch.save_file(renamed, ink)
    error = failure(rounds)
    assert "is of another model" in error.message
    assert not error.retryable
    safetensors.torch.save_file(tensors, ink)
    with caplog.at_level("INFO"):
        assert rounds.result(INK).images
    assert re.search(rf"loaded adapter ink of {re.escape(SPEC.path)} in \d+\.\d s", caplog.text)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (ValueError("of another shape"), False),
    ],
)
def test_a_device_without_memory_is_not_the_files_fault(
    ink: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, passes: bool
) -> None:
    """An adapter that found no memory on the device may be loaded later."""
    rounds = by_request(ink)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(adapters, "_load", fail)
    found = failure(rounds)
    assert (found.retryable, found.may_be_of_process) == (passes, passes)
    assert found.shared_fault == f"adapter ink of {SPEC.path}"


def test_a_device_that_failed_ends_the_process(ink: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is not blamed on the adapter: the process exits, and another one has the task."""
    rounds = by_request(ink)
    raised = torch.AcceleratorError("an illegal memory access was encountered")

    def fail(*_: Any) -> None:
        raise raised

    asked: list[BaseException] = []
    monkeypatch.setattr(adapters, "_load", fail)
    monkeypatch.setattr(device_errors, "exit_if_device_failed", asked.append)
    failure(rounds)
    assert asked[0] is raised


def test_indices_are_copied_once_for_all_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which rows have an adapter goes to the device as often for many alphas as for one."""
    copied: list[torch.dtype] = []

    def copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        copied.append(tensor.dtype)
        return tensor.to(device)

    monkeypatch.setattr(row_adapters, "device_memory", SimpleNamespace(to_device=copy))
    made = lora_files.layers(bare(SPEC.path), 0)
    path = tmp_path / "ink.safetensors"
    counts: dict[lora_files.Format, int] = {}
    for form in ("peft", "kohya"):
        lora_files.save(path, made, form)
        copied.clear()
        by_request(path).result(INK)
        counts[form] = copied.count(torch.long)
    assert counts["peft"] == counts["kohya"] > 0
