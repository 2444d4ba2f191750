"""LoRA files with random weights, as people have them. Knows no pytest."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import safetensors.torch
import torch
from torch import nn

from worker.config.models import Adapter, ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

Format: TypeAlias = Literal["kohya", "peft", "diffusers"]

#: Layers by the kinds of files that people train: attention alone, also linear layers and
#: convolutions of the UNet, and text encoders.
ATTENTION = r"attn\d\.to_(q|k|v|out\.0)$"
CONVOLUTIONS = (
    r"(resnets\.\d\.conv\d|conv_shortcut|time_emb_proj|proj_in|ff\.net\.2|samplers\.0\.conv)$"
)
TEXTS = r"(q_proj|v_proj|out_proj|fc1)$"
#: Standard deviation of the random weights.
DEVIATION = 0.12
_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Layer:
    """The LoRA weights of one layer."""

    #: Of the pipeline, and the layer's name in it.
    part: str
    name: str
    #: (rank, in, …) and (out, rank, …).
    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    def change(self) -> torch.Tensor:
        """What it adds to the layer's weight at scale 1."""
        rank = len(self.down)
        product = self.up.flatten(1) @ self.down.flatten(1)
        return product.view(len(self.up), *self.down.shape[1:]) * (self.alpha / rank)


def layers(pipe: Any, seed: int, unet: str = ATTENTION, texts: str | None = None) -> list[Layer]:
    """Random weights for the layers of UNet and text encoders that match; ranks and alphas differ.

    Alphas are those of kohya's format; the others have none, so that alpha is the rank.
    """
    dice = torch.Generator().manual_seed(seed)
    made = []
    for part, pattern in {"unet": unet, **dict.fromkeys(_ENCODERS, texts)}.items():
        network = getattr(pipe, part, None)
        if network is None or pattern is None:
            continue
        found = [
            (name, each)
            for name, each in network.named_modules()
            if isinstance(each, nn.Linear | nn.Conv2d) and re.search(pattern, name)
        ]
        assert found
        for number, (name, each) in enumerate(found):
            rank = (4, 2, 3)[number % 3]
            made.append(Layer(part, name, *_pair(each, rank, dice), (0.5, 1.5)[number % 2] * rank))
    return made


def save(
    path: Path,
    made: list[Layer],
    form: Format = "peft",
    dtype: torch.dtype = torch.float32,
) -> list[Layer]:
    """Write a file in one of the forms that people have; returns what it means in float32."""
    two = any(each.part == "text_encoder_2" for each in made)
    tensors: dict[str, torch.Tensor] = {}
    for each in made:
        tensors |= named(form, each, "te1" if two else "te")
    tensors = {name: each.to(dtype) for name, each in tensors.items()}
    safetensors.torch.save_file(tensors, path)
    if form == "kohya":
        return made
    return [without_alpha(each) for each in made]


def without_alpha(layer: Layer) -> Layer:
    """What the weights of a layer mean in a file that has no alpha for it."""
    return replace(layer, alpha=float(len(layer.down)))


def merge(pipe: Any, made: list[Layer], scale: float) -> None:
    """Add the weights to those of a pipeline, without any library of LoRA."""
    for each in made:
        layer = getattr(pipe, each.part).get_submodule(each.name)
        layer.weight.data += scale * each.change()


def with_adapters(spec: ModelSpec, files: dict[str, Path], **scales: float) -> ModelSpec:
    """A model's settings with LoRA files by request, and their default scales."""
    named = {
        name: Adapter(path=str(path), scale=scales.get(name, 1.0)) for name, path in files.items()
    }
    return spec.model_copy(update={"adapters": named})


def _pair(layer: Any, rank: int, dice: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights down to the rank and up again."""

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=dice) * DEVIATION

    if isinstance(layer, nn.Conv2d):
        down = drawn(rank, layer.in_channels, *layer.kernel_size)
        return down, drawn(layer.out_channels, rank, 1, 1)
    return drawn(rank, layer.in_features), drawn(layer.out_features, rank)


def named(form: Format, each: Layer, encoder: str = "te") -> dict[str, torch.Tensor]:
    """The tensors of a layer as a file has them."""
    part, name, down, up = each.part, each.name, each.down, each.up
    if form == "peft":
        return {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    if form == "diffusers":
        what = "lora" if part == "unet" else "lora_linear_layer"
        return {f"{part}.{name}.{what}.down.weight": down, f"{part}.{name}.{what}.up.weight": up}
    prefix = {"unet": "unet_", "text_encoder": f"{encoder}_text_model_"}
    own = name.removeprefix("text_model.").replace(".", "_")
    key = f"lora_{prefix.get(part, 'te2_text_model_')}{own}"
    return {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
        f"{key}.alpha": torch.tensor(each.alpha),
    }
