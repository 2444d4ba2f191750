"""Checkpoints in one file: the same pictures as from the model's folder, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.engine import original_layout
from tests.engine.jobs import Rounds, job
from tests.engine.pictures import masked
from tests.engine.small_models import save_inpainting, save_v2, save_xl
from worker import devices
from worker.config.models import CONVERT, SHIPPED_MODEL, Lora, ModelSpec, TextualInversion
from worker.engine.loading import model_loader, single_file
from worker.engine.loading.single_file import SingleFile
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.original_layout import Tensors

#: The UNet's first convolution and the text encoder of Stable Diffusion 1, as small as it gets.
FIRST = {single_file.FIRST: torch.zeros(1, 4, 1, 1)}
TEXT = {"cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.zeros(1)}


def spec(path: Path, config: Path | None = None, **changes: Any) -> ModelSpec:
    given = {"safety_checker": False, "dtype": "float32", "path": str(path)}
    return ModelSpec(**given | {"config": config and str(config)} | changes)


def configuration(folder: Path, there: Path) -> Path:
    """A copy of a model's folder without its weights."""
    return Path(shutil.copytree(folder, there, ignore=shutil.ignore_patterns("*.safetensors")))


def picture(spec: ModelSpec, **changes: Any) -> bytes:
    """The pixels of a job that runs alone."""
    (image,) = Rounds(spec).result(job(output_type="png", **changes)).images
    return bytes(image.pixels.tobytes())


def refusal(spec: ModelSpec) -> str:
    """The message of a model that is refused for good."""
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(spec, "cpu", "none")
    assert not failed.value.retryable
    assert spec.path in failed.value.message
    return failed.value.message


def bundled(_: Path) -> Path:
    return SHIPPED_MODEL


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
    """A checkpoint with a configuration without weights gives the picture of the folder."""
    folder = save(tmp_path / "model")
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
    file = original_layout.save(
        original_layout.tensors_of(SHIPPED_MODEL), tmp_path / "model.safetensors"
    )
    ours = spec(file, SHIPPED_MODEL, dtype="auto")
    assert picture(ours) == picture(spec(SHIPPED_MODEL, dtype="auto"))
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
    file = original_layout.save(
        original_layout.tensors_of(SHIPPED_MODEL), tmp_path / "model.safetensors"
    )
    prompts = ("a <ring> on a blue background",)
    ours = picture(spec(file, SHIPPED_MODEL, **changes), prompts=prompts)
    assert ours == picture(spec(SHIPPED_MODEL, **changes), prompts=prompts)
    for name in ("lora", "textual_inversion"):
        without = spec(file, SHIPPED_MODEL, **changes | {name: ()})
        assert ours != picture(without, prompts=prompts)


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
    assert "lacks a part of its config: tokenizer/vocab.json" in refusal(spec(file, config))


def test_the_repositories_are_those_of_diffusers() -> None:
    """The configuration that is assumed is the one that diffusers' loader would fetch."""
    known = {
        each["pretrained_model_name_or_path"] for each in DIFFUSERS_DEFAULT_PIPELINE_PATHS.values()
    }
    assert {each.config for each in single_file.KINDS.values() if each.config} < known


def test_settings_fit_the_path() -> None:
    """`config` belongs to a file, `variant` to a folder: the other way round is refused."""
    with pytest.raises(ValidationError, match=r"config is for a \.safetensors"):
        ModelSpec(path="/srv/model", config="/srv/config")
    with pytest.raises(ValidationError, match="variant is for a folder or hub id"):
        ModelSpec(path="/srv/model.safetensors", variant="fp16")


def test_weights_are_counted_by_part(tmp_path: Path) -> None:
    """A file's parameters are counted as those of the folder."""
    from worker.engine.loading import model_files

    whole = original_layout.tensors_of(SHIPPED_MODEL)
    file = original_layout.save(whole, tmp_path / "model.safetensors")
    ours = SingleFile(str(file)).inspect(SHIPPED_MODEL, safety_checker=False)
    theirs = model_files.inspect(SHIPPED_MODEL, safety_checker=False)
    assert (ours.faults, ours.parameters) == ([], theirs.parameters)
