"""Which family a model belongs to, by the files of its folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from worker.engine.families.pixel import Pixel
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.families.stable_diffusion_xl import StableDiffusionXL
from worker.engine.sampling import unserved_samplers
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from worker.engine.families.family import Family

FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), Pixel())


def family_of(folder: Path) -> Family:
    """The family of a model; raises `ModelLoadError` with what is not served of one."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = index.get("_class_name") if isinstance(index, dict) else None
    for family in FAMILIES:
        if kind in family.pipelines:
            _check_scheduler(index.get("scheduler"))
            return family
    *names, last = (family.name for family in FAMILIES)
    served = f"{', '.join(names)} and {last}"
    what = f"is a {kind}, which is not served" if kind else "names no pipeline in model_index.json"
    raise ModelLoadError(f"{what}; served are models of {served}", retryable=False)


def _check_scheduler(named: object) -> None:
    """Refuse a model for its scheduler, which diffusers may not even be able to load."""
    class_name = str(named[-1]) if isinstance(named, list) and named else ""
    if why := unserved_samplers.why(class_name):
        raise ModelLoadError(
            f"comes with {class_name}, which is not served: {why}", retryable=False
        )
