"""Folders of models with a fault or a variant, and whether they load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.engine.jobs import SPEC
from worker.config.models import ModelSpec
from worker.engine.loading import model_loader
from worker.engine.loading.model_files import inspect
from worker.errors import ModelLoadError


def loads(folder: Path, *, safety_checker: bool) -> bool:
    try:
        model_loader.load(ModelSpec(path=str(folder), safety_checker=safety_checker), "cpu", "none")
    except ModelLoadError:
        return False
    return True


def cut(folder: Path) -> None:
    """Leave a file as a download that ended early does."""
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pointer(folder: Path) -> None:
    """Leave a file as a checkout without its large files does."""
    file = folder / "text_encoder/model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")


def pickled(folder: Path) -> None:
    """Leave weights in the former format, which is pickled."""
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.rename(folder / "vae/diffusion_pytorch_model.bin")


def absent(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()


def scribbled(folder: Path) -> None:
    (folder / "unet/config.json").write_text("{")


def unnamed(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))


def listed(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def unplaced(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")


def of_variant(folder: Path, there: Path, *parts: str, shards: bool = False) -> Path:
    """A copy whose `parts` have their weights as variant fp16 alone; the UNet's in shards."""
    shutil.copytree(folder, there)
    for part in parts:
        file = next((there / part).glob("*.safetensors"))
        file.rename(file.with_suffix(".fp16.safetensors"))
    if shards:
        (there / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
        unet = model_loader.load(SPEC, "cpu", "none").pipeline.unet
        unet.save_pretrained(there / "unet", variant="fp16", max_shard_size="8MB")
    return there


PARTS = ("unet", "vae", "text_encoder")


def refused(spec: ModelSpec) -> str:
    """The message of a model whose files are at fault, which `doctor` finds, too."""
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(spec, "cpu", "none")
    assert not failed.value.retryable
    for fault in inspect(Path(spec.path), safety_checker=False, variant=spec.variant).faults:
        assert fault in failed.value.message
    return failed.value.message


def flat(folder: Path, there: Path) -> Path:
    """A pixel-space model with its UNet and scheduler beside the index."""
    there.mkdir()
    for file in folder.rglob("*.*"):
        shutil.copy(file, there / file.name)
    return there
