"""What `doctor` reports about a folder's variants of weights, compared with loading it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.model_folders import PARTS, of_variant, refused
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine.loading import model_loader
from worker.engine.loading.model_files import inspect

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("parts", [PARTS, ("unet",)])
@pytest.mark.parametrize("shards", [False, True])
def test_a_variant_is_counted_and_loaded(
    tmp_path: Path, parts: tuple[str, ...], shards: bool
) -> None:
    """With a variant each part is loaded from its files of that variant, if it has some."""
    folder = of_variant(SHIPPED_MODEL, tmp_path / "model", *parts, shards=shards)
    found = inspect(folder, safety_checker=False, variant="fp16")
    assert (found.faults, found.parameters) == (
        [], inspect(SHIPPED_MODEL, safety_checker=False).parameters
    )  # fmt: skip
    spec = ModelSpec(path=str(folder), safety_checker=False, variant="fp16")
    assert model_loader.load(spec, "cpu", "none").pipeline.unet is not None
    if shards:
        next((folder / "unet").glob("*-of-*")).unlink()
        assert (
            "index.fp16.json names it"
            in inspect(folder, safety_checker=False, variant="fp16").faults[0]
        )


def test_a_variant_without_the_setting_is_named(tmp_path: Path) -> None:
    """A folder that has only a variant is refused with its name and the setting."""
    folder = of_variant(SHIPPED_MODEL, tmp_path / "model", *PARTS)
    message = refused(ModelSpec(path=str(folder), safety_checker=False))
    assert "but that of variant fp16 is: set the model's variant" in message


def test_a_variant_that_is_not_there_is_named() -> None:
    """A folder without the variant is refused, and not loaded without it in silence."""
    spec = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, variant="fp16")
    assert "no part has weights of variant 'fp16'" in refused(spec)
