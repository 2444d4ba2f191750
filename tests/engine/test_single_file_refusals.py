"""Files that are no checkpoint of a served model, or do not fit their configuration, are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.engine import original_layout
from tests.engine.single_files import configuration, refusal, spec
from tests.engine.small_models import save_v2, save_xl
from worker.config.models import CONVERT, SHIPPED_MODEL, SHIPPED_PIXEL_MODEL, ModelSpec
from worker.engine.loading import model_loader, single_file

if TYPE_CHECKING:
    from tests.engine.original_layout import Tensors

#: The UNet's first convolution and the text encoder of Stable Diffusion 1, as small as it gets.
FIRST = {single_file.FIRST: torch.zeros(1, 4, 1, 1)}
TEXT = {"cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.zeros(1)}


def test_a_file_that_does_not_say_what_it_predicts_needs_a_config(tmp_path: Path) -> None:
    """No configuration is assumed for Stable Diffusion 2: its two kinds have one layout."""
    tensors = FIRST | {"cond_stage_model.model.ln_final.bias": torch.zeros(1)}
    message = refusal(spec(original_layout.save(tensors, tmp_path / "v2.safetensors")))
    assert "set its config" in message
    assert "stable-diffusion-2-1 (v" in message


def test_a_file_that_says_v_needs_a_config_that_does(tmp_path: Path) -> None:
    """A file with the mark of v-prediction is refused with a scheduler of epsilon."""
    tensors = original_layout.tensors_of(SHIPPED_MODEL) | {"v_pred": torch.zeros(())}
    file = original_layout.save(tensors, tmp_path / "model.safetensors")
    assert "predicts v, and its config does not" in refusal(spec(file, SHIPPED_MODEL))


def test_a_file_of_zero_terminal_snr_needs_a_config_that_has_it(tmp_path: Path) -> None:
    """A file with that mark is refused with a scheduler whose last step has some signal."""
    tensors = original_layout.tensors_of(SHIPPED_MODEL) | {"ztsnr": torch.zeros(())}
    file = original_layout.save(tensors, tmp_path / "model.safetensors")
    assert "zero terminal SNR (ztsnr)" in refusal(spec(file, SHIPPED_MODEL))
    config = configuration(SHIPPED_MODEL, tmp_path / "config")
    scheduler = config / "scheduler" / "scheduler_config.json"
    changed = json.loads(scheduler.read_text()) | {"rescale_betas_zero_snr": True}
    scheduler.write_text(json.dumps(changed))
    model_loader.load(spec(file, config), "cpu", "none")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias":
          torch.zeros(1)}, "is a checkpoint of Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(1)}, "of Flux"),
        (FIRST | {"conditioner.embedders.0.model.ln_final.bias": torch.zeros(1)}, "the refiner"),
        (FIRST | TEXT | {"edm_mean": torch.zeros(1)}, "EDM's preconditioning, as Playground 2.5"),
        (FIRST | TEXT | {"edm_vpred.sigma_max": torch.zeros(1)}, "and CosXL"),
        ({"control_model.input_blocks.0.0.weight": torch.zeros(1)}, "is a ControlNet"),
        ({"lora_unet_mid_block.lora_down.weight": torch.zeros(1)}, "LoRA weights"),
        ({"unet.mid_block.to_q.lora_A.weight": torch.zeros(1)}, "LoRA weights"),
        ({"down_blocks.0.resnets.0.norm1.bias": torch.zeros(1)}, "the UNet of a model alone"),
        ({"encoder.conv_in.weight": torch.zeros(1)}, "the autoencoder of a model alone"),
        ({"layers.0.weight": torch.zeros(1)}, "no checkpoint of Stable Diffusion"),
        ({single_file.FIRST: torch.zeros(4)} | TEXT, "input_blocks.0.0.weight of 4 dimensions"),
        (FIRST, "has no text encoder"),
        (TEXT | {single_file.FIRST: torch.zeros(1, 8, 1, 1)}, "an input of 8 channels"),
        (FIRST | TEXT, "has no vae: no tensor first_stage_model"),
    ],
)  # fmt: skip
def test_another_file_is_named(tmp_path: Path, tensors: Tensors, reason: str) -> None:
    """A file that is no checkpoint of a served family is refused by what it is."""
    file = original_layout.save(tensors, tmp_path / "model.safetensors")
    assert reason in refusal(spec(file, SHIPPED_MODEL))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """An empty file, and one that ends early, are refused as not complete."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "is not complete" in refusal(spec(file))
    original_layout.save(original_layout.tensors_of(SHIPPED_MODEL), file)
    file.write_bytes(file.read_bytes()[:-100])
    assert "is not complete" in refusal(spec(file))


@pytest.mark.parametrize("end", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path, end: str) -> None:
    """A pickled checkpoint is never read: the error says why, and how to convert it."""
    file = tmp_path / f"model{end}"
    file.write_bytes(b"")
    message = refusal(spec(file))
    assert "is a pickle, which may run code" in message
    assert CONVERT in message


def test_any_other_file_is_named(tmp_path: Path) -> None:
    """A file of another kind is refused as such."""
    file = tmp_path / "model.onnx"
    file.write_bytes(b"")
    assert "no .safetensors checkpoint" in refusal(spec(file))


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ],
)
def test_a_missing_tensor_is_final(tmp_path: Path, name: str) -> None:
    """A file that lacks a tensor is refused, whichever part it belongs to."""
    tensors = original_layout.tensors_of(SHIPPED_MODEL)
    del tensors[name]
    file = original_layout.save(tensors, tmp_path / "model.safetensors")
    assert "lacks weights" in refusal(spec(file, SHIPPED_MODEL))


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    """Weights that the configuration has no place for are not left out in silence."""
    tensors = original_layout.tensors_of(SHIPPED_MODEL)
    unet = load_file(SHIPPED_MODEL / "unet" / "diffusion_pytorch_model.safetensors")
    layer = "transformer_blocks.0.attn1.to_q.weight"
    again = unet[f"mid_block.attentions.0.{layer}"].clone()
    tensors[f"model.diffusion_model.middle_block.1.{layer.replace('0', '1', 1)}"] = again
    file = original_layout.save(tensors, tmp_path / "model.safetensors")
    assert "has a UNet of" in refusal(spec(file, SHIPPED_MODEL))
    xl = configuration(save_xl(tmp_path / "xl"), tmp_path / "config")
    whole = original_layout.tensors_of(SHIPPED_MODEL)
    one = original_layout.save(whole, tmp_path / "one.safetensors")
    assert "is of Stable Diffusion 1, its config of StableDiffusionXL" in refusal(spec(one, xl))
    pixels = refusal(spec(one, SHIPPED_PIXEL_MODEL))
    assert "is of Stable Diffusion 1, its config of DDIMPipeline" in pixels
    narrow = configuration(save_v2(tmp_path / "v2"), tmp_path / "narrow")
    assert "or is not of the kind of its config" in refusal(spec(one, narrow))


def test_a_safety_checker_is_not_in_one_file(tmp_path: Path) -> None:
    """A file without `safety_checker: false` is refused, as a folder that has no checker."""
    whole = original_layout.tensors_of(SHIPPED_MODEL)
    file = original_layout.save(whole, tmp_path / "model.safetensors")
    message = refusal(spec(file, SHIPPED_MODEL, safety_checker=True))
    assert "has no safety checker; set safety_checker to false" in message


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Without its configuration on this machine a file is refused, with what to set."""
    whole = original_layout.tensors_of(SHIPPED_MODEL)
    file = original_layout.save(whole, tmp_path / "model.safetensors")
    assert "'/nowhere' is not on this machine" in refusal(spec(file, Path("/nowhere")))
    config = configuration(SHIPPED_MODEL, tmp_path / "config")
    shutil.rmtree(config / "tokenizer")
    assert "has a faulty config: tokenizer/vocab.json" in refusal(spec(file, config))


def test_settings_fit_the_path() -> None:
    """`config` belongs to a file, `variant` to a folder: the other way round is refused."""
    with pytest.raises(ValidationError, match=r"config is for a \.safetensors"):
        ModelSpec(path="/srv/model", config="/srv/config")
    with pytest.raises(ValidationError, match="variant is for a folder or hub id"):
        ModelSpec(path="/srv/model.safetensors", variant="fp16")
