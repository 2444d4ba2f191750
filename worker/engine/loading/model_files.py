"""Checks a model's folder in diffusers' layout: missing files, and the size of its weights.

Reads the headers of weight files only; knows no torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
#: The weight file of a part, as diffusers and transformers name it; the other parts have none.
_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "image_encoder": "model.safetensors",
    "safety_checker": "model.safetensors",
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


def inspect(folder: Path, *, safety_checker: bool) -> ModelFiles:
    """Check every file that loading the model reads, those of its safety checker if wanted."""
    found = ModelFiles()
    try:
        index = _json(folder, "model_index.json")
    except ModelLoadError as error:
        found.faults.append(error.message)
        return found
    parts = {
        name for name, kind in index.items()
        if not name.startswith("_") and isinstance(kind, list) and any(kind)
    }  # fmt: skip
    kind, needed = str(index.get("_class_name")), _NEEDED
    if kind in PIXEL_PIPELINES:
        needed = _NEEDED_BY_PIXELS
    elif "XL" in kind:
        needed = _NEEDED | _NEEDED_BY_XL
    needed |= {"safety_checker"} if safety_checker else set()
    found.faults += [f"model_index.json names no {part}" for part in sorted(needed - parts)]
    for part in sorted(parts if safety_checker else parts - {"safety_checker"}):
        try:
            _part(folder, part, found)
        except ModelLoadError as error:
            found.faults.append(error.message)
    return found


def shapes(folder: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the tensors of UNet and text encoders by name; raises `ModelLoadError`."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if (folder / part).is_dir():
            found[part] = {}
            for file in _weights(folder, f"{part}/{_WEIGHTS[part]}"):
                found[part] |= _shapes(folder, file)
    return found


def _part(folder: Path, part: str, found: ModelFiles) -> None:
    if part.startswith("tokenizer"):
        if not (folder / part / _TOKENIZER).is_file():
            for name in _TOKENIZER_PARTS:
                _there(folder, f"{part}/{name}", f"and {part}/{_TOKENIZER} neither")
        return
    _json(folder, f"{part}/{_CONFIGS.get(part, 'config.json')}")
    if part in _WEIGHTS:
        files = _weights(folder, f"{part}/{_WEIGHTS[part]}")
        layers: Counter[str] = Counter()
        for file in files:
            layers.update(_layers(folder, file))
        found.parameters[part] = layers.total()
        found.largest_layers[part] = max(layers.values(), default=0)


def _weights(folder: Path, file: str) -> list[str]:
    """Return the weight files of a part: one, or those that an index names."""
    index = f"{file}.index.json"
    if not (folder / index).is_file():
        return [_there(folder, file, "and only safetensors are loaded")]
    placed = _json(folder, index).get("weight_map")
    if not isinstance(placed, dict):
        raise ModelLoadError(f"{index} has no weight_map")
    part, names = file.partition("/")[0], set(map(str, placed.values()))
    return [_there(folder, f"{part}/{name}", f"but {index} names it") for name in sorted(names)]


def _layers(folder: Path, file: str) -> Counter[str]:
    """Return the parameters of each layer in a file."""
    layers: Counter[str] = Counter()
    for name, shape in _shapes(folder, file).items():
        layers[name.rpartition(".")[0]] += math.prod(shape)
    return layers


def _shapes(folder: Path, file: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file; its header shows whether it is complete."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # the worker extra

    try:
        with safe_open(folder / file, "np") as weights:
            names = [*weights.keys()]
            return {name: tuple(weights.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file} is not complete: {error}") from error


def _json(folder: Path, file: str) -> dict[str, Any]:
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
