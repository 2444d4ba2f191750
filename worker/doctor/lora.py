"""Whether the LoRA files of a model are served, and are of that model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from worker.doctor.finding import Finding
from worker.engine.loading import lora_files, model_files, model_json
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.config.models import ModelSpec

_FIX = "set its path in SAG_MODELS to another file"


def check_loras(what: str, spec: ModelSpec) -> Iterator[Finding]:
    """Read the header of each file of `lora` and `adapters` that is on this machine."""
    if not (loras := (*spec.lora, *spec.adapters.values())):
        return
    from worker.engine.loading import hub  # noqa: PLC0415  # imports the hub's client

    model, missing = hub.local(spec.path), hub.missing(spec)
    for each in loras:
        path = hub.local(each.path)
        if path is None or each.path in missing:
            continue
        try:
            fault = _fault(model, spec.variant, lora_files.read(str(path)))
        except (OSError, ValueError) as error:
            fault = str(error)
        if fault is not None:
            yield Finding(what, ok=False, found=f"{each.path} {fault}", fix=_FIX)


def _fault(model: Path | None, variant: str | None, file: lora_files.LoraFile) -> str | None:
    """Why a file does not fit a model's folder; None too where that is not whole, or none.

    A checkpoint in one file has other names for its layers, so that loading it tells.
    """
    if model is None or not model.is_dir():
        return None
    try:
        family = model_json.read_index(model).family
        config = SimpleNamespace(**model_json.read_json(model, "unet/config.json"))
        shapes = model_files.shapes(model, variant)
    except (OSError, ModelLoadError):
        return None  # which the check of the folder reports
    import diffusers  # noqa: PLC0415  # takes seconds to import

    xl = "XL" if family == "stable_diffusion_xl" else ""
    pipeline = getattr(diffusers, f"StableDiffusion{xl}Pipeline")
    return lora_files.fault(lora_files.parts_of(file, pipeline, config), shapes)
