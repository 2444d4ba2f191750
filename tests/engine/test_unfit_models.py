"""Models whose parts don't fit each other are refused when they load, not after the denoising."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
from safetensors.torch import load_file, save_file

from tests.engine.small_models import save_pixels, save_with_vae, save_xl
from worker.config.models import SHIPPED_MODEL, ModelSpec, TextualInversion
from worker.doctor.family import check_family
from worker.engine.loading import model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def without_a_tensor(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.bias"]
    save_file(weights, file, {"format": "pt"})


def with_config(part: str, **changes: Any) -> Callable[[Path], None]:
    """Another configuration of a part, and random weights for it."""

    def change(folder: Path) -> None:
        kind: Any = {"vae": diffusers.AutoencoderKL, "unet": diffusers.UNet2DConditionModel}[part]
        config = kind.load_config(folder / part)
        kind.from_config({**config, **changes}).save_pretrained(folder / part)

    return change


def continuous(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    own = diffusers.EulerDiscreteScheduler(timestep_type="continuous")
    own.save_pretrained(folder / "scheduler")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_a_tensor, "lacks weights, such as unet conv_in.bias"),
        (with_config("vae", latent_channels=8), "a VAE of 8 channels for a UNet of 4"),
        (with_config("unet", cross_attention_dim=32), "for a UNet of 32"),
        (continuous, "continuous timesteps"),
    ],
    ids=["tensor", "vae", "unet", "timesteps"],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    """A part that does not fit fails the load for good, with the two numbers or the tensor."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    change(folder)
    with pytest.raises(ModelLoadError, match=reason) as failed:
        model_loader.load(ModelSpec(path=str(folder), safety_checker=False), "cpu", "none")
    assert not failed.value.retryable


def test_an_input_that_no_request_has_is_refused_for_sdxl(tmp_path: Path) -> None:
    """A UNet with a class embedding is refused when it is loaded, in both families."""
    folder = save_xl(tmp_path / "xl", class_embed_type="timestep")
    with pytest.raises(ModelLoadError, match="inputs beside the text"):
        model_loader.load(ModelSpec(path=str(folder), safety_checker=False), "cpu", "none")


def test_an_asymmetric_autoencoder_is_refused(tmp_path: Path) -> None:
    """It decodes with the picture and the mask, which the engine does not pass to it."""
    blocks = {"down_block_out_channels": (32,) * 3, "up_block_out_channels": (32,) * 3}
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    vae = diffusers.AsymmetricAutoencoderKL(**blocks, **kinds)
    folder = save_with_vae(tmp_path / "asymmetric", vae)
    with pytest.raises(ModelLoadError, match="AsymmetricAutoencoderKL"):
        model_loader.load(ModelSpec(path=str(folder), safety_checker=False), "cpu", "none")


def test_an_encoder_may_know_more_words(tmp_path: Path) -> None:
    """A text encoder's table of words may have more rows than the tokenizer has words."""
    from transformers import CLIPTextModel

    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    encoder.resize_token_embeddings(encoder.config.vocab_size + 8)
    encoder.save_pretrained(folder / "text_encoder")
    model_loader.load(ModelSpec(path=str(folder), safety_checker=False), "cpu", "none")


@pytest.mark.parametrize("kind", ["FluxPipeline", "StableDiffusion3Pipeline", None])
def test_a_family_that_is_not_served_is_named(tmp_path: Path, kind: str | None) -> None:
    """A model of another family is refused by the name of its pipeline, before weights are read."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
    shutil.rmtree(folder / "unet")
    reason = f"names a {kind}, which is not served" if kind else "names no pipeline"
    with pytest.raises(ModelLoadError, match=reason) as failed:
        model_loader.load(ModelSpec(path=str(folder), safety_checker=False), "cpu", "none")
    assert "Stable Diffusion, Stable Diffusion XL and pixel-space models" in failed.value.message
    assert not failed.value.retryable


@pytest.mark.parametrize("kind", ["DPMSolverSDEScheduler", "EDMEulerScheduler"])
def test_a_scheduler_that_is_not_served_is_named(tmp_path: Path, kind: str) -> None:
    """A model that comes with such a scheduler is refused with the reason, before it is loaded."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", kind]
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(folder / "unet")
    reason = f"names a {kind}, which is not served: it"
    with pytest.raises(ModelLoadError, match=reason) as failed:
        model_loader.load(ModelSpec(path=str(folder), safety_checker=False), "cpu", "none")
    assert not failed.value.retryable


def test_a_layer_that_is_not_there_is_named() -> None:
    """A `sag_layer` that the UNet lacks is refused, with names of some that it has."""
    for layer in ("mid_block.attentions.0.transformer_blocks.0.attn2", "up_blocks.9", "conv_in"):
        spec = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, sag_layer=layer)
        with pytest.raises(ModelLoadError, match=f"no self-attention '{layer}'") as failed:
            model_loader.load(spec, "cpu", "none")
        assert "up_blocks.1.attentions.0.transformer_blocks.0.attn1" in failed.value.message


def test_xl_takes_no_textual_inversion(tmp_path: Path) -> None:
    """SDXL with `textual_inversion` is refused: diffusers would load it for one encoder alone."""
    word = TextualInversion(path="word.safetensors", token="<ring>")
    spec = ModelSpec(
        path=str(save_xl(tmp_path / "xl")), safety_checker=False, textual_inversion=(word,)
    )
    with pytest.raises(ModelLoadError, match="takes no `textual_inversion`") as failed:
        model_loader.load(spec, "cpu", "none")
    assert not failed.value.retryable


@pytest.mark.parametrize("null_class", [0, 7])
def test_stable_diffusion_has_no_classes(null_class: int) -> None:
    """A `null_class` of a model that has no classes is refused, the class 0 too."""
    spec = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, null_class=null_class)
    what = "is a Stable Diffusion model, which takes no `null_class`"
    with pytest.raises(ModelLoadError, match=what):
        model_loader.load(spec, "cpu", "none")
    (finding,) = check_family("model a", spec)
    assert (finding.ok, finding.found) == (False, what)


@pytest.mark.parametrize(
    ("unet", "scheduler", "changes", "what"),
    [
        ({"class_embed_type": "timestep"}, {}, {}, "embeddings of classes or timesteps"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 9}, {}, {}, "embeddings of"),
        ({"in_channels": 4, "out_channels": 4}, {}, {}, "pictures of 4 channels"),
        ({"out_channels": 5}, {}, {}, "UNet of 3 and 5 channels"),
        ({"time_embedding_type": "fourier"}, {}, {}, "embeddings of"),
        ({"sample_size": 17}, {}, {}, "a size of 17"),
        ({"sample_size": None}, {}, {}, "a size of None"),
        ({"out_channels": 6}, {"variance_type": "learned"}, {}, "variance_type 'learned'"),
        ({}, {"variance_type": "learned_range"}, {}, "learned variance for a UNet that gives none"),
        ({"num_class_embeds": 3}, {}, {"null_class": 3}, "no class 3"),
        ({}, {}, {"null_class": 0}, "no class 0"),
        ({}, {}, {"safety_checker": True}, "no safety checker"),
        ({}, {}, {"lora": ({"path": "a"},)}, "takes no `lora`"),
        ({}, {}, {"vae_slicing": True}, "takes no `vae_slicing`"),
        ({"mid_block_type": None}, {}, {}, "no attention in its mid block"),
        ({}, {}, {"sag_layer": "up_blocks.9"}, "no self-attention 'up_blocks.9'"),
    ],
)
def test_a_model_of_pixels_that_does_not_fit(
    tmp_path: Path,
    unet: dict[str, Any],
    scheduler: dict[str, Any],
    changes: dict[str, Any],
    what: str,
) -> None:
    """What would fail tasks or draw wrong pictures is refused at load, with the reason."""
    folder = save_pixels(tmp_path, scheduler=diffusers.DDPMScheduler(**scheduler), **unet)
    given = {"path": str(folder), "safety_checker": False} | changes
    spec = ModelSpec.model_validate(given)
    with pytest.raises(ModelLoadError, match=what):
        model_loader.load(spec, "cpu", "none")
    assert [what in each.found for each in check_family("model a", spec)] == [True] * (
        "takes no" in what
    )
