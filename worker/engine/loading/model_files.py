"""Checks a model's folder in diffusers' layout: missing files, the size of its weights.

Reads the headers of weight files only; knows no torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.engine.loading.weight_files import (
    STEMS,
    chosen,
    read_header,
    variant_of,
    whole,
    why_missing,
)
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

#: The parts that every Stable Diffusion model has, and those that only XL has.
_NEEDED = frozenset({"unet", "vae", "text_encoder", "tokenizer", "scheduler"})
_NEEDED_BY_XL = frozenset({"text_encoder_2", "tokenizer_2"})
#: Classes of diffusers' pipelines that `model_index.json` names for models of pixels; their parts.
PIXEL_PIPELINES = frozenset({"DDPMPipeline", "DDIMPipeline"})
_NEEDED_BY_PIXELS = frozenset({"unet", "scheduler"})
#: The configuration file of a part; `config.json` for all others.
_CONFIGS = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
}
#: A tokenizer is stored in one file, or in these two.
_TOKENIZER, _TOKENIZER_PARTS = "tokenizer.json", ("vocab.json", "merges.txt")
#: The part that stays on the GPU in any mode of offload.
_STAYS = "safety_checker"
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass
class ModelFiles:
    """The contents of a model's folder."""

    #: Files that are missing or cannot be read, each in words.
    faults: list[str] = field(default_factory=list)
    #: Class of diffusers' pipeline; empty where the index can't be read.
    pipeline: str = ""
    #: Number of parameters of each part that has weights, and of its largest layer.
    parameters: dict[str, int] = field(default_factory=dict)
    largest_layers: dict[str, int] = field(default_factory=dict)

    def weights_bytes(self, dtype: str, offload: str) -> int:
        """Least size of the weights that are on the GPU at once, in bytes, without activations.

        `none`: all parts. `swap`, and `model` and `auto` where the others do not fit: the largest
        part. `sequential`: the largest layer. The safety checker is on the GPU in any mode.
        """
        sizes = self.largest_layers if offload == "sequential" else self.parameters
        if offload == "none":
            return sum(sizes.values()) * _BYTES[dtype]
        moved = [size for part, size in sizes.items() if part != _STAYS]
        return (max(moved, default=0) + self.parameters.get(_STAYS, 0)) * _BYTES[dtype]


def inspect(
    folder: Path, *, safety_checker: bool, variant: str | None = None, weights: bool = True
) -> ModelFiles:
    """Check every file that loading the model reads, those of its safety checker if wanted.

    Without `weights` only the configuration is checked, and the tokenizers.
    """
    found = ModelFiles()
    try:
        index = read_json(folder, "model_index.json")
    except ModelLoadError as error:
        found.faults.append(error.message)
        return found
    parts = {
        name for name, kind in index.items()
        if not name.startswith("_") and isinstance(kind, list) and any(kind)
    }  # fmt: skip
    found.pipeline, needed = str(index.get("_class_name")), _NEEDED
    if found.pipeline in PIXEL_PIPELINES:
        needed = _NEEDED_BY_PIXELS
    elif "XL" in found.pipeline:
        needed = _NEEDED | _NEEDED_BY_XL
    needed |= {"safety_checker"} if safety_checker else set()
    found.faults += [f"model_index.json names no {part}" for part in sorted(needed - parts)]
    wanted = sorted(parts if safety_checker else parts - {"safety_checker"})
    #: Where each part is: in a folder of its own, or, as early models of pixels, beside the index.
    places = {
        part: ""
        if found.pipeline in PIXEL_PIPELINES and not (folder / part).is_dir()
        else f"{part}/"
        for part in wanted
    }
    names = {part: _names(folder / places[part]) for part in wanted if weights and part in STEMS}
    if variant and not any(variant_of(each, variant) for each in names.values()):
        found.faults.append(f"no part has weights of variant {variant!r}")
        return found
    for part in wanted:
        try:
            _config(folder, part, places[part])
            if part in names:
                _weights(folder, part, _weight_files(folder, part, places[part], variant), found)
        except ModelLoadError as error:
            found.faults.append(error.message)
    return found


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []


def shapes(folder: Path, variant: str | None) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the tensors of UNet and text encoders by name; raises `ModelLoadError`."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if _names(folder / part):
            found[part] = {}
            for file in _weight_files(folder, part, f"{part}/", variant):
                found[part] |= read_shapes(folder / file)
    return found


def _config(folder: Path, part: str, place: str) -> None:
    """Check a part's configuration, or the files of a tokenizer."""
    if not part.startswith("tokenizer"):
        read_json(folder, f"{place}{_CONFIGS.get(part, 'config.json')}")
    elif not (folder / part / _TOKENIZER).is_file():
        for name in _TOKENIZER_PARTS:
            _there(folder, f"{part}/{name}", f"and {part}/{_TOKENIZER} neither")


def _weights(folder: Path, part: str, files: list[str], found: ModelFiles) -> None:
    """Count the weights of a part; raises `ModelLoadError` with the file that is at fault."""
    layers: Counter[str] = Counter()
    for file in files:
        try:
            tensors = read_shapes(folder / file)
        except ModelLoadError as error:
            raise ModelLoadError(f"{file} {error.message}") from error
        for tensor, shape in tensors.items():
            layers[tensor.rpartition(".")[0]] += math.prod(shape)
    found.parameters[part] = layers.total()
    found.largest_layers[part] = max(layers.values(), default=0)


def _weight_files(folder: Path, part: str, place: str, variant: str | None) -> list[str]:
    """Return the weight files of a part: one, or the shards that an index names."""
    names = _names(folder / place)
    variant = variant_of(names, variant)
    files = chosen(part, names, variant)
    if not files:
        file = f"{place}{whole(part, variant)}"
        raise ModelLoadError(f"{file} is not there, {why_missing(part, names)}")
    index = next((name for name in files if name.endswith(".json")), None)
    if index is not None:
        placed = read_json(folder, f"{place}{index}").get("weight_map")
        if not isinstance(placed, dict):
            raise ModelLoadError(f"{place}{index} has no weight_map")
        files = sorted(set(map(str, placed.values())))
    return [_there(folder, f"{place}{name}", f"but {place}{index} names it") for name in files]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file, by its header, which shows whether it is complete.

    Raises `ModelLoadError`, the end of a sentence about the file.
    """
    from safetensors import SafetensorError  # noqa: PLC0415  # the worker extra

    try:
        return read_header(path)[0]
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"is not complete: {error}") from error


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """The content of a file; raises `ModelLoadError` with its name."""
    try:
        read = json.loads((folder / _there(folder, file)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise ModelLoadError(f"{file} is not a JSON object")
    return read


def _there(folder: Path, file: str, but: str = "") -> str:
    """Return the file's own name; raises when it is not there."""
    if not (folder / file).is_file():
        raise ModelLoadError(f"{file} is not there{', ' + but if but else ''}")
    return file
