"""Writes a model as its authors did: in one file, with CompVis's names of UNet and autoencoder."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, TypeAlias

import torch
from safetensors.torch import load_file, save_file

from worker.engine.loading.weight_files import whole

if TYPE_CHECKING:
    from pathlib import Path

Tensors: TypeAlias = dict[str, torch.Tensor]
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
_VAE = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm",
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}  # fmt: skip
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj",
    "self_attn": "attn",
}  # fmt: skip


def tensors_of(folder: Path, *, xl: bool = False, open_clip: bool = False) -> Tensors:
    """The tensors of a model; `open_clip` is the origin of its text encoder, as of SD 2."""
    first = "conditioner.embedders.0." if xl else "cond_stage_model."
    layers = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"]
    text = _text(_part(folder, "text_encoder"))
    made = _prefixed("model.diffusion_model.", _unet(_part(folder, "unet"), layers + 1))
    made |= _prefixed("first_stage_model.", _vae(_part(folder, "vae")))
    if open_clip:
        made |= _prefixed(f"{first}model.", _open_clip(text))
    else:
        made |= _prefixed(f"{first}transformer.text_model.", text)
    if xl:
        second = _open_clip(_text(_part(folder, "text_encoder_2")))
        made |= _prefixed("conditioner.embedders.1.model.", second)
    return made


def save(tensors: Tensors, file: Path) -> Path:
    """Write the file."""
    save_file({name: each.contiguous() for name, each in tensors.items()}, file)
    return file


def _part(folder: Path, part: str) -> Tensors:
    return load_file(folder / part / whole(part, None))


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": each for name, each in tensors.items()}


def _text(tensors: Tensors) -> Tensors:
    return {name.removeprefix("text_model."): each for name, each in tensors.items()}


def _replaced(name: str, names: dict[str, str]) -> str:
    for theirs, original in names.items():
        name = re.sub(rf"(?<![\w]){re.escape(theirs)}(?![\w])", original, name)
    return name


def _unet(tensors: Tensors, per_level: int) -> Tensors:
    """`per_level` is the number of blocks of a level: its layers and the change of size."""
    attended = {
        name.split(".")[1] for name in tensors if re.match(r"up_blocks.\d+.attentions", name)
    }

    def original(name: str) -> str:
        match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
        if match is None:
            return _replaced(name, _UNET if "attentions" in name else _UNET | _RESNET)
        way, level, kind, layer, rest = match.groups()
        side = "input" if way == "down" else "output"
        block = int(level) * per_level + int(layer) + (way == "down")
        if kind == "resnets":
            return f"{side}_blocks.{block}.0.{_replaced(rest, _RESNET)}"
        if kind == "attentions":
            return f"{side}_blocks.{block}.1.{rest}"
        if kind == "downsamplers":
            return f"input_blocks.{block + per_level - 1}.0.{rest.replace('conv', 'op')}"
        return f"output_blocks.{block + per_level - 1}.{1 + (level in attended)}.{rest}"

    return {original(name): each for name, each in tensors.items()}


def _vae(tensors: Tensors) -> Tensors:
    """Levels of the decoder are counted from the picture, and its attention has convolutions."""
    last = max(int(name.split(".")[2]) for name in tensors if name.startswith("decoder.up_blocks"))

    def original(name: str) -> str:
        name = re.sub(r"down_blocks\.(\d+)\.(resnets)?", r"down.\1.\2", name)
        name = re.sub(
            r"up_blocks\.(\d+)\.(resnets)?",
            lambda up: f"up.{last - int(up[1])}.{up[2] or ''}",
            name,
        )
        return _replaced(name, _VAE).replace(".resnets.", ".block.")

    made = {original(name): each for name, each in tensors.items()}
    return {
        name: each[:, :, None, None] if ".attn_1." in name and each.ndim == 2 else each
        for name, each in made.items()
    }


def _open_clip(tensors: Tensors) -> Tensors:
    """Queries, keys and values are one matrix, and the projection is transposed."""
    made: Tensors = {}
    for name, each in tensors.items():
        if name == "text_projection.weight":
            made["text_projection"] = each.T
        elif (match := re.match(r"(.*\.self_attn\.)q_proj\.(\w+)", name)) is not None:
            three = [tensors[f"{match[1]}{key}_proj.{match[2]}"] for key in "qkv"]
            made[f"{_replaced(match[1], _OPEN_CLIP)}in_proj_{match[2]}"] = torch.cat(three)
        elif not re.search(r"\.[kv]_proj\.", name):
            made[_replaced(name, _OPEN_CLIP)] = each
    return made
