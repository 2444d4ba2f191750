"""Whether a model's UNet has what the settings name: a self-attention, a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.doctor.finding import Finding
from worker.engine.loading import model_files, model_json
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from worker.config.models import ModelSpec

#: Layers that a finding names.
_NAMED = 4
#: The projections of a layer of attention, and their names in early pixel-space models.
_PROJECTIONS = ((".to_q.weight", ".to_k.weight"), (".query.weight", ".key.weight"))


def check_unet(what: str, spec: ModelSpec) -> Iterator[Finding]:
    """Report a `sag_layer` or `null_class` that a model's folder on this machine does not have."""
    if spec.is_single_file or (spec.sag_layer is None and spec.null_class is None):
        return  # a single file has other names for its layers, so that loading it tells
    from worker.engine.loading import hub  # noqa: PLC0415  # imports the hub's client

    if (folder := hub.local(spec.path)) is None:
        return
    try:
        faults = [*_faults(folder, spec)]
    except (OSError, ModelLoadError):
        return  # which the check of the folder reports
    for name, found in faults:
        fix = f"correct {name} of the model in SAG_MODELS, or remove it"
        yield Finding(what, ok=False, found=found, fix=fix)


def _faults(folder: Path, spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """The settings that are wrong, each with the end of a sentence about the model."""
    place = model_files.unet_place(folder)
    if spec.sag_layer is not None:
        shapes = model_files.shapes_of(folder, "unet", place, spec.variant)
        layers = self_attentions(shapes)
        if spec.sag_layer not in layers:
            some = ", ".join(layers[-_NAMED:]) or "none"
            found = f"has no self-attention {spec.sag_layer!r} (sag_layer); it has, among others: "
            yield "sag_layer", found + some
    if spec.null_class is not None and model_json.read_index(folder).family == "pixels":
        count = model_json.read_json(folder, f"{place}config.json").get("num_class_embeds") or 0
        if spec.null_class >= count:
            found = f"has no class {spec.null_class} (null_class): it has {count}"
            yield "null_class", found


def self_attentions(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The self-attentions of a UNet, by the shapes of its tensors.

    The keys of a self-attention are made of what its queries are made of; `attn2` is diffusers'
    name for attention to the text, which may have the same width.
    """
    found = []
    for query, key in _PROJECTIONS:
        for name in (each.removesuffix(query) for each in shapes if each.endswith(query)):
            is_of_text = name.endswith(".attn2")
            if not is_of_text and shapes[f"{name}{query}"][1] == shapes[f"{name}{key}"][1]:
                found.append(name)
    return found
