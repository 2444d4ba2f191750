"""Which family a model belongs to, by the files of its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.engine.families.pixel import Pixel
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.families.stable_diffusion_xl import StableDiffusionXL
from worker.engine.loading.model_json import read_index

if TYPE_CHECKING:
    from pathlib import Path

    from worker.engine.families.family import Family

_FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), Pixel())


def family_of(folder: Path) -> Family:
    """The family of a model; raises `ModelLoadError` with what is wrong or not served of one."""
    name = read_index(folder).family
    return next(each for each in _FAMILIES if each.name == name)
