"""What is in the hub's cache is loaded without the hub; what is not is downloaded before."""

from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from tests.engine.jobs import SPEC
from worker import embedded
from worker.config.models import Lora, ModelSpec
from worker.engine import hub, model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REMOTE = SPEC.model_copy(update={"path": "owner/name"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a hub that accepts connections and never answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 600)
    with socket.create_server((embedded.LOOPBACK, 0)) as silent:
        address = f"http://{embedded.LOOPBACK}:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield tmp_path


def cached(cache: Path, repository: str) -> Path:
    """The empty folder of a repository's files in the cache, as the hub's client makes it."""
    there = cache / f"models--{repository.replace('/', '--')}"
    (there / "refs").mkdir(parents=True)
    (there / "refs" / "main").write_text("c0")
    (there / "snapshots" / "c0").mkdir(parents=True)
    return there / "snapshots" / "c0"


def test_a_cached_model_needs_no_hub(cache: Path) -> None:
    """It is complete, its download returns at once, and so does loading it."""
    shutil.copytree(SPEC.path, cached(cache, "owner/name"), dirs_exist_ok=True)
    assert hub.is_complete(REMOTE)
    hub.download(REMOTE)
    assert model_loader.load(REMOTE, "cpu", "none").pipeline.unet is not None


def test_a_part_of_a_model_is_no_model(cache: Path) -> None:
    """After an interrupted download some files are there: it is downloaded again."""
    assert not hub.is_complete(REMOTE)
    model = cached(cache, "owner/name")
    shutil.copytree(SPEC.path, model, dirs_exist_ok=True)
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert not hub.is_complete(REMOTE)


def test_additions_are_downloaded_too(cache: Path) -> None:
    """LoRA weights and textual inversions of a hub belong to what a model needs."""
    spec = SPEC.model_copy(update={"lora": (Lora(path="owner/lora"),)})
    assert not hub.is_complete(spec)
    weights = cached(cache, "owner/lora") / "pytorch_lora_weights.safetensors"
    assert not hub.is_complete(spec)
    weights.write_bytes(b"")
    assert hub.is_complete(spec)
    assert hub.local("owner/lora") == weights.parent


def test_loading_asks_no_hub() -> None:
    """What is not downloaded is an error at once, also where the hub would never answer."""
    for spec in (REMOTE, SPEC.model_copy(update={"lora": (Lora(path="owner/lora"),)})):
        with pytest.raises(ModelLoadError, match="is not downloaded"):
            model_loader.load(spec, "cpu", "none")


def test_paths_are_complete() -> None:
    """Also one that is missing: only loading it has the error that names it."""
    assert hub.is_complete(SPEC)
    assert hub.is_complete(ModelSpec(path="/nowhere"))
