"""What `doctor` reports of a `sag_layer` and a `null_class` that a model does not have."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.settings.findings import models
from worker.config.models import SHIPPED_MODEL, SHIPPED_PIXEL_MODEL, ModelSpec
from worker.doctor.unet import self_attentions
from worker.engine.loading import model_files
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from worker.config.settings import Settings

LAYER = "mid_block.attentions.0"
PIXELS = ModelSpec(path=str(SHIPPED_PIXEL_MODEL), safety_checker=False)
TEXTS = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False)


@pytest.mark.parametrize(
    ("spec", "changes", "names"),
    [
        (PIXELS, {"null_class": 61}, ("null_class", "61")),
        (PIXELS, {"null_class": 60}, None),
        (PIXELS, {"sag_layer": f"{LAYER}.nope"}, ("sag_layer", LAYER)),
        (PIXELS, {"sag_layer": LAYER}, None),
        (TEXTS, {"sag_layer": "up_blocks.9"}, ("sag_layer", f"{LAYER}.transformer_blocks.0.attn1")),
        (TEXTS, {"sag_layer": f"{LAYER}.transformer_blocks.0.attn2"}, ("sag_layer",)),
        (TEXTS, {"sag_layer": f"{LAYER}.transformer_blocks.0.attn1"}, None),
    ],
)  # fmt: skip
def test_doctor_reports_what_fails_when_it_is_loaded(
    settings: Settings, spec: ModelSpec, changes: dict[str, object], names: tuple[str, ...] | None
) -> None:
    """The setting and what the model has are named, in the words of the error of loading it."""
    from worker.engine.loading import model_loader

    changed = spec.model_copy(update=changes)
    bad = [each for each in models(settings, a=changed) if not each.ok]
    if names is None:
        assert bad == []
        model_loader.load(changed, "cpu", "none")
        return
    (found,) = bad
    assert all(name in found.found for name in names)
    assert names[0] in found.fix
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(changed, "cpu", "none")
    assert found.found.partition(",")[0].partition(";")[0] in failed.value.message


def test_a_unet_beside_the_index_is_checked(settings: Settings, tmp_path: Path) -> None:
    """As early pixel-space models have it."""
    folder = tmp_path / "flat"
    shutil.copytree(SHIPPED_PIXEL_MODEL, folder)
    for file in [*(folder / "unet").iterdir()]:
        file.rename(folder / file.name)
    (folder / "unet").rmdir()
    wrong = ModelSpec(path=str(folder), null_class=700, sag_layer="nope")
    found = [each.found for each in models(settings, a=wrong) if not each.ok]
    assert [each.partition(" (")[0] for each in found] == [
        "has no self-attention 'nope'", "has no class 700",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["shipped", "pixels", "xl"])
def test_the_headers_name_the_layers_of_the_network(tmp_path: Path, kind: str) -> None:
    """By the names and shapes in its files a UNet has the self-attentions that it has loaded."""
    import diffusers

    from tests.engine import small_models

    folder = {
        "shipped": lambda: SHIPPED_MODEL,
        "pixels": lambda: small_models.save_pixels(tmp_path / "p"),
        "xl": lambda: small_models.save_xl(tmp_path / "x"),
    }[kind]()
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    layers = {
        name
        for name, module in pipe.unet.named_modules()
        if isinstance(module, diffusers.models.attention_processor.Attention)
        and not module.is_cross_attention
    }
    shapes = model_files.shapes_of(Path(folder), "unet", "unet/", None)
    assert {*self_attentions(shapes)} == layers
    assert layers
