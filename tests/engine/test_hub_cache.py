"""What is in the hub's cache is complete or not, and is loaded without the hub."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.engine.hub_server import REMOTE, cached
from tests.engine.jobs import SPEC
from worker.config.models import Adapter, Lora, ModelSpec
from worker.config.settings import Settings
from worker.doctor.checks import check_models
from worker.engine.loading import hub, model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("cache")


def test_a_cached_model_needs_no_hub(cache: Path) -> None:
    """A model in the cache is complete and is loaded without the hub."""
    shutil.copytree(SPEC.path, cached(cache, "owner/name"), dirs_exist_ok=True)
    assert not hub.missing(REMOTE)
    hub.download(REMOTE)
    assert model_loader.load(REMOTE, "cpu", "none").pipeline.unet is not None


def test_a_part_of_a_model_is_no_model(cache: Path) -> None:
    """A model that lacks a file, as after an interrupted download, is not complete."""
    assert hub.missing(REMOTE)
    model = cached(cache, "owner/name")
    shutil.copytree(SPEC.path, model, dirs_exist_ok=True)
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert hub.missing(REMOTE)


def test_a_model_that_is_not_served_is_complete(cache: Path) -> None:
    """No download is tried for a model whose index is refused: it would bring nothing else."""
    model = cached(cache, "owner/name")
    shutil.copytree(SPEC.path, model, dirs_exist_ok=True)
    index = json.loads((model / "model_index.json").read_text())
    changed = json.dumps(index | {"_class_name": ["my_pipeline", "MyPipeline"]})
    (model / "model_index.json").write_text(changed)
    hub.download(REMOTE)
    with pytest.raises(ModelLoadError, match="a custom pipeline") as failed:
        model_loader.load(REMOTE, "cpu", "none")
    assert not failed.value.retryable
    found = [*check_models(Settings(models={"a": REMOTE}))]
    assert [each.ok for each in found] == [True, True, False]
    assert "owner/name: model_index.json names a custom pipeline" in found[-1].found


def test_additions_are_downloaded_too(cache: Path) -> None:
    """LoRA weights, those by request too, of a hub belong to what a model needs."""
    spec = SPEC.model_copy(update={"adapters": {"ink": Adapter(path="owner/lora")}})
    assert hub.missing(spec)
    spec = SPEC.model_copy(update={"lora": (Lora(path="owner/lora"),)})
    assert hub.missing(spec)
    weights = cached(cache, "owner/lora") / "pytorch_lora_weights.safetensors"
    assert hub.missing(spec)
    weights.write_bytes(b"")
    assert not hub.missing(spec)
    assert hub.local("owner/lora") == weights.parent


def test_paths_are_complete() -> None:
    """A model given by a path counts as complete, also a missing one, which only loading finds."""
    assert not hub.missing(SPEC)
    assert not hub.missing(ModelSpec(path="/nowhere"))
    assert not hub.missing(ModelSpec(path="models/nowhere.safetensors"))
