"""Settings of checkpoints in one file, their pictures, and how they are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engine.jobs import Rounds, job
from worker.config.models import ModelSpec
from worker.engine.loading import model_loader
from worker.errors import ModelLoadError


def spec(path: Path, config: Path | None = None, **changes: Any) -> ModelSpec:
    given = {"safety_checker": False, "dtype": "float32", "path": str(path)}
    return ModelSpec(**given | {"config": config and str(config)} | changes)


def configuration(folder: Path, there: Path) -> Path:
    """A copy of a model's folder without its weights."""
    return Path(shutil.copytree(folder, there, ignore=shutil.ignore_patterns("*.safetensors")))


def picture(spec: ModelSpec, **changes: Any) -> bytes:
    """The pixels of a job that runs alone."""
    (image,) = Rounds(spec).result(job(output_type="png", **changes)).images
    return bytes(image.pixels.tobytes())


def refusal(spec: ModelSpec) -> str:
    """The message of a model that is refused for good."""
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(spec, "cpu", "none")
    assert not failed.value.retryable
    assert spec.path in failed.value.message
    return failed.value.message
