"""Reads the JSON files of a model's folder, and checks `model_index.json`. Knows no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from worker.engine.loading.weight_files import STEMS
from worker.engine.sampling import unserved_samplers
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Classes of diffusers' pipelines that `model_index.json` names, by family.
PIPELINES = {
    "stable_diffusion": (
        "StableDiffusionPipeline", "StableDiffusionSAGPipeline", "StableDiffusionPAGPipeline",
        "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    ),
    "stable_diffusion_xl": (
        "StableDiffusionXLPipeline", "StableDiffusionXLPAGPipeline",
        "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
    ),
    "pixels": ("DDPMPipeline", "DDIMPipeline"),
}  # fmt: skip
#: The parts of models. All else in an index is an option of the pipeline.
_PARTS = (*STEMS, "feature_extractor", "scheduler", "tokenizer", "tokenizer_2")
_INDEX = "model_index.json"
_SERVED = "; served are Stable Diffusion, Stable Diffusion XL and pixel-space models"


@dataclass(frozen=True)
class ModelIndex:
    """What `model_index.json` says of a model that is served."""

    family: str
    #: Class of diffusers' pipeline.
    pipeline: str
    #: The class of each part that the model has.
    parts: dict[str, str]


def read_index(folder: Path) -> ModelIndex:
    """Raises `ModelLoadError` with what is wrong in the index, or not served."""
    index = read_json(folder, _INDEX)
    pipeline = index.get("_class_name")
    if not pipeline:
        _refuse(f"{_INDEX} names no pipeline{_SERVED}")
    if not isinstance(pipeline, str):
        _refuse(f"{_INDEX} names a custom pipeline, {pipeline!r}, which is not served{_SERVED}")
    family = next((name for name, each in PIPELINES.items() if pipeline in each), None)
    if family is None:
        _refuse(f"{_INDEX} names a {pipeline}, which is not served{_SERVED}")
    parts = _parts_of(index)
    scheduler = parts.get("scheduler", "")
    if why := unserved_samplers.why(scheduler):
        _refuse(f"{_INDEX} names a {scheduler}, which is not served: {why}")
    return ModelIndex(family, pipeline, parts)


def _parts_of(index: Mapping[str, Any]) -> dict[str, str]:
    """The class of each part, of the library and the class that the index has for it."""
    found = {}
    for part in _PARTS:
        match index.get(part, [None, None]):
            case [str(), str(name)]:
                found[part] = name
            case [None, None]:
                pass
            case other:
                _refuse(f"{_INDEX} has no library and class for {part}, but {other!r}"[:500])
    return found


def _refuse(what: str) -> NoReturn:
    raise ModelLoadError(what, retryable=False)


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """The content of a file; raises `ModelLoadError` with its name."""
    try:
        read = json.loads((folder / there(folder, file)).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: of deeply nested JSON
        raise ModelLoadError(f"{file} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise ModelLoadError(f"{file} is not a JSON object")
    return read


def there(folder: Path, file: str, but: str = "") -> str:
    """The file's own name; raises `ModelLoadError` when it is not there."""
    if not (folder / file).is_file():
        raise ModelLoadError(f"{file} is not there{', ' + but if but else ''}")
    return file
