"""Weight files: their names in diffusers' layout, and what their headers say. No torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from worker.config.models import CONVERT, PICKLES, SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

#: How diffusers and transformers begin the names of a part's weight files.
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "image_encoder": "model",
    "safety_checker": "model",
}
_SHARD = r"-\d{5}-of-\d{5}"


def variant_of(names: Collection[str], variant: str | None) -> str | None:
    """The variant of a part with files of these names: None without one, as diffusers does."""
    if variant and any(name.partition(".")[2].startswith(variant) for name in names):
        return variant
    return None


def whole(part: str, variant: str | None) -> str:
    """The file that has all weights of a part."""
    return f"{STEMS[part]}{_dotted(variant)}{SAFETENSORS}"


def chosen(part: str, names: Collection[str], variant: str | None) -> list[str]:
    """Of the names in a part's folder, those of the weights that are loaded, and their index."""
    stem, index = STEMS[part], f"{STEMS[part]}{SAFETENSORS}.index{_dotted(variant)}.json"
    if index not in names:
        return [name for name in names if name == whole(part, variant)]
    # Shards of variants had their names the other way round once.
    tails = rf"{_SHARD}\.{variant}|\.{variant}{_SHARD}" if variant else _SHARD
    shard = re.compile(rf"{stem}(?:{tails}){re.escape(SAFETENSORS)}")
    return [name for name in names if name == index or shard.fullmatch(name)]


def why_missing(part: str, names: Collection[str]) -> str:
    """What the part's folder has instead of the weights, as the end of a sentence."""
    found = re.compile(rf"{STEMS[part]}(?:{_SHARD})?\.(\w+?)(?:{_SHARD})?{re.escape(SAFETENSORS)}")
    variants = sorted({match[1] for name in names if (match := found.fullmatch(name))})
    if variants:
        return (
            f"but that of variant {', '.join(variants)} is: set the model's variant in SAG_MODELS"
        )
    pickled = sorted(name for name in names if name.endswith(PICKLES))
    if pickled:
        return f"only {part}/{pickled[0]}, which is pickled and not read; {CONVERT}"
    return "and only safetensors are loaded"


def _dotted(variant: str | None) -> str:
    return f".{variant}" if variant else ""


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shapes of a file's tensors by name, and its metadata.

    Raises SafetensorError or OSError for a file that is not complete, or of another format.
    """
    from safetensors import safe_open  # noqa: PLC0415  # the worker extra

    with safe_open(path, "np") as file:
        shapes = {
            name: tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118  # no mapping
        }
        return shapes, file.metadata() or {}
