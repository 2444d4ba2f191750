"""What a LoRA file has, by its header, and whether it is served for a model.

Reads no weights, only the alphas of kohya's format. Imports torch for a file that has some, and
diffusers when `parts_of` is called.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from worker.engine.loading import lora_metadata
from worker.engine.loading.weight_files import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Shape: TypeAlias = tuple[int, ...]
    #: Shapes of a model's tensors by name, for each of its networks.
    Shapes: TypeAlias = Mapping[str, Mapping[str, Shape]]

#: The file that diffusers takes of a folder with several.
_USUAL = "pytorch_lora_weights.safetensors"
#: Ends of names, of LoRA as kohya, peft and diffusers write it.
_IS_LORA = re.compile(
    r"(\.lora_(down|up|A|B)\.weight|[._]lora\.(down|up)\.weight"
    r"|\.lora_linear_layer\.(down|up)\.weight|\.alpha)$"
)
#: Formats that are not served, by a part of their tensors' names.
_OTHERS = {
    "DoRA": ("dora_scale", "lora_magnitude_vector"),
    "LoHa": ("hada_",),
    "LoKr": ("lokr_",),
    "LoRA of Tucker's decomposition": ("lora_mid",),
    "OFT": ("oft_",),
    "the words of a textual inversion": ("bundle_emb",),
    "LoRA with biases": ("lora_B.bias",),
    "the names of peft's save_pretrained": ("base_model.model.",),
}
#: Names of the networks to which diffusers adds LoRA; it reads no weights of others.
_NETWORKS = ("unet", "text_encoder")
_REMEDY = (
    "convert it to plain LoRA with the names of diffusers' save_lora_weights, or merge it into a"
    " copy of the model"
)


@dataclass(frozen=True)
class LoraFile:
    """The header of a LoRA file."""

    path: Path
    shapes: dict[str, Shape]
    #: Of kohya's format, by their names in the file.
    alphas: dict[str, float]
    #: Of diffusers' format, by network.
    noted_alphas: dict[str, lora_metadata.Alphas]


@dataclass(frozen=True)
class LoraPart:
    """The LoRA weights of one layer: where they belong, (rank, in, …) and (out, rank, …)."""

    network: str
    layer: str
    down: Shape
    up: Shape
    #: The scale of the weights is alpha / rank.
    alpha: float


def read(path: str) -> LoraFile:
    """The header of a file, or of the one in a folder.

    Raises OSError with what is wrong, as the end of a sentence about the path.
    """
    from safetensors import SafetensorError  # noqa: PLC0415  # the worker extra

    file = _file(Path(path))
    try:
        shapes, metadata = read_header(file)
        alphas = _alphas(file, [name for name in shapes if name.endswith(".alpha")])
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        message = f"can't be read as LoRA weights in safetensors: {error}"
        raise OSError(message) from error
    if (what := _foreign(shapes)) is not None:
        raise OSError(what)
    try:
        noted = lora_metadata.read(metadata)
    except ValueError as error:
        message = f"{error}, which is not served: {_REMEDY}"
        raise OSError(message) from error
    if alphas and noted:
        raise OSError("has alphas twice, as tensors and in its metadata")
    return LoraFile(file, shapes, alphas, noted)


def _alphas(file: Path, names: list[str]) -> dict[str, float]:
    """By torch, since numpy has no bfloat16."""
    from safetensors import safe_open  # noqa: PLC0415  # the worker extra

    if not names:
        return {}
    with safe_open(file, "pt") as weights:
        return {name: float(weights.get_tensor(name)) for name in names}


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    usual = [each for each in found if each.name == _USUAL]
    if len(chosen := usual or found) != 1:
        message = (
            f"has {len(found)} safetensors files: set path to the one with the LoRA weights; a hub"
            " id can't name a file, so download that one and set path to it"
        )
        raise OSError(message)
    return chosen[0]


def _foreign(shapes: Mapping[str, Shape]) -> str | None:
    """What a file has that is not served, as the end of a sentence about it."""
    for kind, marks in _OTHERS.items():
        for name in shapes:
            if any(mark in name for mark in marks):
                return f"has {kind} ({name!r}), which is not served: {_REMEDY}"
    odd = [name for name in shapes if not _IS_LORA.search(name)]
    if odd:
        return f"has {len(odd)} tensors that are no LoRA weights, such as {odd[0]!r}"
    for name, shape in shapes.items():
        is_weight = not name.endswith(".alpha")
        if is_weight and (len(shape) < 2 or 0 in shape):  # noqa: PLR2004  # of a linear layer
            return f"has a tensor of shape {shape} ({name!r}), which is no LoRA weight"
    return None if shapes else "has no weights"


def parts_of(file: LoraFile, kind: Any, unet_config: Any) -> list[LoraPart]:  # noqa: ANN401  # diffusers' own
    """The layers that diffusers makes of the names in a file, for a class of its pipelines.

    Raises `ValueError` with what can't be understood, as the end of a sentence about the file.
    """
    import torch  # noqa: PLC0415  # takes seconds to import

    tensors = {
        name: torch.tensor(file.alphas[name])
        if name in file.alphas
        else torch.zeros(()).expand(shape)  # of no memory
        for name, shape in file.shapes.items()
    }
    options = {"unet_config": unet_config} if "XL" in kind.__name__ else {}
    try:
        tensors, alphas = kind.lora_state_dict(tensors, **options)
        halves = dict(_halves(tensors))
    except Exception as error:  # diffusers raises anything
        message = f"has names that diffusers can't read: {error!r}"[:500]
        raise ValueError(message) from error
    found = []
    for (network, layer), half in halves.items():
        if len(half) != 2:  # noqa: PLR2004  # a pair
            message = f"has one half alone of the weights for {network}.{layer}"
            raise ValueError(message)
        down, up = (tuple(tensors[half[letter]].shape) for letter in "AB")
        rank = down[0]
        if (noted := file.noted_alphas.get(network)) is not None:
            # Which text encoders have this part depends on the version of transformers.
            place = layer if network == "unet" else f"text_model.{layer}"
            alpha = noted.of(place, rank)
        else:
            alpha = (alphas or {}).get(half["A"].split(".lora.")[0] + ".alpha", rank)
        found.append(LoraPart(network, layer, down, up, alpha))
    return found


def _halves(tensors: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, str]]]:
    """By network and layer: the names of both halves, A and B, as diffusers has read them."""
    from diffusers.utils import state_dict_utils as names  # noqa: PLC0415  # as above

    by_network: dict[str, dict[str, str]] = {}
    for name in tensors:
        network, _, rest = name.partition(".")
        by_network.setdefault(network, {})[rest] = name
    for network, own in by_network.items():
        converted: dict[str, str] = own
        if network.startswith("text_encoder"):
            linear = names.convert_state_dict_to_diffusers(own)
            converted = names.convert_state_dict_to_peft(linear)
        elif "lora_A" not in next(iter(own)):
            converted = names.convert_unet_state_dict_to_peft(own)
        pairs: dict[str, dict[str, str]] = {}
        for key, name in converted.items():
            layer, letter = key.removeprefix("text_model.").removesuffix(".weight").split(".lora_")
            pairs.setdefault(layer, {})[letter] = name
        yield from (((network, layer), pair) for layer, pair in pairs.items())


def fault(parts: list[LoraPart], shapes: Shapes) -> str | None:
    """Why a file does not fit a model, as the end of a sentence; None where every layer does."""
    weights = {
        (network, name.removeprefix("text_model.")): shape
        for network, tensors in shapes.items()
        if network.startswith(_NETWORKS)
        for name, shape in tensors.items()
    }
    strange = [
        each
        for each in parts
        if (shape := weights.get((each.network, f"{each.layer}.weight"))) is None
        or shape[1:] != each.down[1:]
        or shape[0] != each.up[0]
    ]
    if not strange:
        return None
    first = strange[0]
    return (
        f"is of another model: {len(strange)} of its {len(parts)} layers are not there, or of"
        f" another shape, such as {first.network}.{first.layer}"
    )
