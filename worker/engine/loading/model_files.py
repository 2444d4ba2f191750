"""Checks a model's folder in diffusers' layout: missing files, the size of its weights.

Reads the headers of weight files only; knows no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.engine.loading.model_json import read_index, read_json, there
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

_STABLE_DIFFUSION = frozenset({"unet", "vae", "text_encoder", "tokenizer", "scheduler"})
#: The parts that every model has, by family.
_NEEDED = {
    "stable_diffusion": _STABLE_DIFFUSION,
    "stable_diffusion_xl": _STABLE_DIFFUSION | {"text_encoder_2", "tokenizer_2"},
    "pixels": frozenset({"unet", "scheduler"}),
}
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
    #: The errors of files that are missing or cannot be read, some of which may pass.
    errors: list[ModelLoadError] = field(default_factory=list)
    #: Number of parameters of each part that has weights, and of its largest layer.
    parameters: dict[str, int] = field(default_factory=dict)
    largest_layers: dict[str, int] = field(default_factory=dict)

    def add(self, error: ModelLoadError) -> None:
        """Note a fault."""
        self.faults.append(error.message)
        self.errors.append(error)

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
        index = read_index(folder)
    except ModelLoadError as error:
        found.add(error)
        return found
    needed = _NEEDED[index.family] | ({"safety_checker"} if safety_checker else set())
    lacking = sorted(needed - {*index.parts})
    found.faults += [f"model_index.json names no {part}" for part in lacking]
    wanted = sorted({*index.parts} - (set() if safety_checker else {"safety_checker"}))
    #: Where each part is: in its own folder or, as in early pixel-space models, beside the index.
    places = {
        part: "" if index.family == "pixels" and not (folder / part).is_dir() else f"{part}/"
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
            found.add(error)
    return found


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []


def shapes(folder: Path, variant: str | None) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the tensors of UNet and text encoders by name; raises `ModelLoadError`."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if _names(folder / part):
            found[part] = shapes_of(folder, part, f"{part}/", variant)
    return found


def shapes_of(
    folder: Path, part: str, place: str, variant: str | None
) -> dict[str, tuple[int, ...]]:
    """The shapes of a part's tensors by name; raises `ModelLoadError`."""
    found: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(folder, part, place, variant):
        found |= read_shapes(folder / file)
    return found


def unet_place(folder: Path) -> str:
    """Where a model has its UNet: early pixel-space models beside the index."""
    return "unet/" if (folder / "unet").is_dir() else ""


def _config(folder: Path, part: str, place: str) -> None:
    """Check a part's configuration, or the files of a tokenizer."""
    if not part.startswith("tokenizer"):
        read_json(folder, f"{place}{_CONFIGS.get(part, 'config.json')}")
    elif (folder / part / _TOKENIZER).is_file():
        read_json(folder, f"{part}/{_TOKENIZER}")
    else:
        for name in _TOKENIZER_PARTS:
            there(folder, f"{part}/{name}", f"and {part}/{_TOKENIZER} neither")


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
        table = read_json(folder, f"{place}{index}")
        for name in ("weight_map", "metadata"):
            if not isinstance(table.get(name), dict):
                raise ModelLoadError(f"{place}{index} has no {name}")
        files = sorted(set(map(str, table["weight_map"].values())))
        if not files:
            raise ModelLoadError(f"{place}{index} names no file")
    return [there(folder, f"{place}{name}", f"but {place}{index} names it") for name in files]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file, by its header, which shows whether it is complete.

    Raises `ModelLoadError`, the end of a sentence about the file.
    """
    from safetensors import SafetensorError  # noqa: PLC0415  # the worker extra

    try:
        return read_header(path)[0]
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"is not complete: {error}") from error
