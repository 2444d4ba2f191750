"""What `doctor` reports of a model in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub import constants

from tests.settings.findings import models
from worker.config.models import SHIPPED_MODEL, SHIPPED_PIXEL_MODEL, ModelSpec
from worker.devices import Gpu
from worker.doctor.checks import check_models

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from worker.config.settings import Settings


def single_file(folder: Path) -> str:
    """The bundled model as one file."""
    from tests.engine import original_layout

    whole = original_layout.tensors_of(SHIPPED_MODEL)
    return str(original_layout.save(whole, folder / "model.safetensors"))


def test_a_single_file_is_inspected(settings: Settings, tmp_path: Path) -> None:
    """A checkpoint in one file is whole with its config, and what is wrong is named otherwise."""
    file = single_file(tmp_path)
    cut, pickle = tmp_path / "cut.safetensors", tmp_path / "model.ckpt"
    cut.write_bytes(b"cut")
    pickle.write_bytes(b"")
    found = models(
        settings,
        a=ModelSpec(path=file, config=str(SHIPPED_MODEL)),
        b=ModelSpec(path=file, config="/nowhere"),
        c=ModelSpec(path=str(cut), config=str(SHIPPED_MODEL)),
        d=ModelSpec(path=str(pickle)),
        e=ModelSpec(path="models/absent.safetensors"),
    )
    assert [each.ok for each in found] == [True, False, False, False, False]
    assert "it is whole" in found[0].found
    assert "config /nowhere is not there" in found[1].found
    assert "is not complete" in found[2].found
    assert "is a pickle" in found[3].found
    assert "is not there" in found[4].found
    assert all("SAG_MODELS" in each.fix for each in found)


def test_a_config_of_another_family_is_reported(settings: Settings, tmp_path: Path) -> None:
    """A file of Stable Diffusion with the config of a pixel-space model is named with both."""
    spec = ModelSpec(path=single_file(tmp_path), config=str(SHIPPED_PIXEL_MODEL))
    (found,) = models(settings, a=spec)
    assert not found.ok
    assert "is of Stable Diffusion 1, its config of DDIMPipeline" in found.found


def test_a_single_file_has_no_safety_checker(settings: Settings, tmp_path: Path) -> None:
    """A checkpoint in one file with a safety checker in the settings is reported."""
    spec = ModelSpec(path=single_file(tmp_path), config=str(SHIPPED_MODEL))
    (found,) = check_models(settings.model_copy(update={"models": {"a": spec}}))
    assert not found.ok
    assert "has no safety checker; set safety_checker to false" in found.found


def test_a_single_files_memory_is_compared(settings: Settings, tmp_path: Path) -> None:
    """The weights of a file need the memory of the folder's."""
    file = single_file(tmp_path)
    gpu = Gpu(index=0, gpu_uuid="a", name="small", memory_mib=1, free_mib=1)
    cuda = settings.model_copy(update={"device": "cuda:0"})
    specs = [
        ModelSpec(path=file, config=str(SHIPPED_MODEL), safety_checker=False),
        ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False),
    ]
    ours, theirs = (
        list(check_models(cuda.model_copy(update={"models": {"a": each}}), [gpu]))[-1]
        for each in specs
    )
    assert ours == theirs
    assert not ours.ok


def test_a_single_file_may_need_a_hub(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `config` the hub is asked for the configuration that belongs to the file's kind."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    file = single_file(tmp_path)
    weights, place, asked = models(settings, a=ModelSpec(path=file))
    assert (weights.ok, place.ok, asked.ok) == (True, True, False)
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in asked.found
    assert "or its config, to a folder" in asked.fix
