"""Checkpoints in one file: the same pictures as from the model's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS

from tests.engine import original_layout
from tests.engine.pictures import masked
from tests.engine.single_files import configuration, picture, spec
from tests.engine.small_models import save_inpainting, save_v2, save_xl
from worker import devices
from worker.config.models import SHIPPED_MODEL, Lora, TextualInversion
from worker.engine.loading import model_loader, single_file
from worker.engine.loading.single_file import SingleFile

if TYPE_CHECKING:
    from collections.abc import Callable


def bundled(there: Path) -> Path:
    return Path(shutil.copytree(SHIPPED_MODEL, there))


def halved(folder: Path) -> Path:
    """The folder, with its weights in float16."""
    for file in folder.rglob("*.safetensors"):
        tensors = safetensors.torch.load_file(file)
        halves = {name: each.half() for name, each in tensors.items()}
        safetensors.torch.save_file(halves, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("save", "layout"),
    [
        (bundled, {}),
        pytest.param(save_v2, {"open_clip": True}, marks=pytest.mark.slow),
        pytest.param(save_inpainting, {}, marks=pytest.mark.slow),
        pytest.param(save_xl, {"xl": True}, marks=pytest.mark.slow),
    ],
    ids=["1", "2", "1 for inpainting", "xl"],
)
def test_a_file_gives_the_bytes_of_the_folder(
    tmp_path: Path, save: Callable[[Path], Path], layout: dict[str, bool]
) -> None:
    """A checkpoint with a configuration without weights gives the picture of the folder.

    Both are in half precision, so loading copies the weights. Weights in the precision that is
    asked for stay in the mapped file, and where they begin there changes how a CPU rounds.
    """
    folder = halved(save(tmp_path / "model"))
    tensors = original_layout.tensors_of(folder, **layout)
    # What real checkpoints have beside the model: the schedule, CLIP's unused layer, averages.
    tensors |= {
        "alphas_cumprod": torch.zeros(4), "model_ema.decay": torch.zeros(()),
        "cond_stage_model.model.logit_scale": torch.zeros(()),
        "cond_stage_model.model.transformer.resblocks.23.ln_1.weight": torch.ones(4),
    } if layout.get("open_clip") else {}  # fmt: skip
    file = original_layout.save(tensors, tmp_path / "model.safetensors")
    config = configuration(folder, tmp_path / "config")
    fields = masked() if save is save_inpainting else {}
    assert picture(spec(file, config), **fields) == picture(spec(folder), **fields)


def test_the_configuration_says_what_is_predicted(tmp_path: Path) -> None:
    """A file of Stable Diffusion 2 predicts v or epsilon as its configuration says."""
    folder = save_v2(tmp_path / "v")
    tensors = original_layout.tensors_of(folder, open_clip=True)
    file = original_layout.save(tensors, tmp_path / "v2.safetensors")
    base = configuration(folder, tmp_path / "base")
    scheduler = base / "scheduler" / "scheduler_config.json"
    changed = json.loads(scheduler.read_text()) | {"prediction_type": "epsilon"}
    scheduler.write_text(json.dumps(changed))
    for config, kind in ((folder, "v_prediction"), (base, "epsilon")):
        pipe = model_loader.load(spec(file, config), "cpu", "none").pipeline
        assert pipe.scheduler.config.prediction_type == kind


def test_a_folder_may_have_the_name_of_a_file(tmp_path: Path) -> None:
    """A folder that ends in .safetensors is loaded as a folder."""
    folder = Path(shutil.copytree(SHIPPED_MODEL, tmp_path / "model.safetensors"))
    model_loader.load(spec(folder), "cpu", "none")


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_precision_is_that_of_the_settings(
    tmp_path: Path, stored: torch.dtype, dtype: str
) -> None:
    """Whatever precision the file has, each network gets that of the settings."""
    tensors = original_layout.tensors_of(SHIPPED_MODEL)
    halves = {name: each.to(stored) for name, each in tensors.items()}
    file = original_layout.save(halves, tmp_path / "model.safetensors")
    pipe = model_loader.load(spec(file, SHIPPED_MODEL, dtype=dtype), "cpu", "none").pipeline
    for part in ("unet", "vae", "text_encoder"):
        kinds = {each.dtype for each in getattr(pipe, part).parameters()}
        assert kinds == {getattr(torch, dtype)}


@pytest.mark.slow
def test_a_unet_may_have_another_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor with AMX the UNet of a file is in bfloat16, as that of a folder."""
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda: True)
    folder = halved(bundled(tmp_path / "model"))
    file = original_layout.save(original_layout.tensors_of(folder), tmp_path / "model.safetensors")
    ours = spec(file, folder, dtype="auto")
    assert picture(ours) == picture(spec(folder, dtype="auto"))
    pipe = model_loader.load(ours, "cpu", "none").pipeline
    assert (pipe.unet.dtype, pipe.text_encoder.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.slow
def test_additions_work_as_with_a_folder(tmp_path: Path) -> None:
    """LoRA weights, a textual inversion and the autoencoder's slices give the folder's picture."""
    word, lora = tmp_path / "ring.safetensors", tmp_path / "lora.safetensors"
    original_layout.save({"emb_params": torch.full((1, 128), 0.02)}, word)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
    matrices = {"lora_A": torch.eye(4, 128), "lora_B": torch.full((128, 4), 0.5)}
    original_layout.save({f"{layer}.{n}.weight": each for n, each in matrices.items()}, lora)
    changes: dict[str, Any] = {
        "lora": (Lora(path=str(lora), scale=0.7),),
        "textual_inversion": (TextualInversion(path=str(word), token="<ring>"),),
        "vae_slicing": True,
    }
    folder = halved(bundled(tmp_path / "model"))
    file = original_layout.save(original_layout.tensors_of(folder), tmp_path / "model.safetensors")
    prompts = ("a <ring> on a blue background",)
    ours = picture(spec(file, folder, **changes), prompts=prompts)
    assert ours == picture(spec(folder, **changes), prompts=prompts)
    for name in ("lora", "textual_inversion"):
        without = spec(file, folder, **changes | {name: ()})
        assert ours != picture(without, prompts=prompts)


def test_the_repositories_are_those_of_diffusers() -> None:
    """The configuration that is assumed is the one that diffusers' loader would fetch."""
    known = {
        each["pretrained_model_name_or_path"] for each in DIFFUSERS_DEFAULT_PIPELINE_PATHS.values()
    }
    assert {each.config for each in single_file.KINDS.values() if each.config} < known


def test_weights_are_counted_by_part(tmp_path: Path) -> None:
    """A file's parameters are counted as those of the folder."""
    from worker.engine.loading import model_files

    whole = original_layout.tensors_of(SHIPPED_MODEL)
    file = original_layout.save(whole, tmp_path / "model.safetensors")
    ours = SingleFile(str(file)).inspect(SHIPPED_MODEL, safety_checker=False)
    theirs = model_files.inspect(SHIPPED_MODEL, safety_checker=False)
    assert (ours.faults, ours.parameters) == ([], theirs.parameters)
