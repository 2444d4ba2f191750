"""What `doctor` reports about a model's folder, compared with loading it."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.engine.jobs import SPEC
from tests.engine.small_models import save_pixels, save_xl
from worker.config.models import CONVERT, SHIPPED_MODEL, ModelSpec
from worker.engine.loading import model_loader
from worker.engine.loading.model_files import inspect
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a safety checker, an image encoder and weights in several files."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=32))
    folder = tmp_path_factory.mktemp("model") / "whole"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = {"height": 32, "width": 32}
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
        pipe = model_loader.load(SPEC, "cpu", "none").pipeline
        eyes = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision))
        pipe.register_modules(
            safety_checker=checker, feature_extractor=processor, image_encoder=eyes
        )
        pipe.save_pretrained(folder, max_shard_size="4MB")
    return folder


def loads(folder: Path, *, safety_checker: bool) -> bool:
    try:
        model_loader.load(ModelSpec(path=str(folder), safety_checker=safety_checker), "cpu", "none")
    except ModelLoadError:
        return False
    return True


@pytest.mark.parametrize("safety_checker", [True, False])
def test_each_missing_file_is_named(whole: Path, tmp_path: Path, safety_checker: bool) -> None:
    """Without any one file `look` has a fault that names it, but for those that are not needed."""
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file())
    unnamed = []
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder, copy_function=os.link)
        (folder / file).unlink()
        faults = inspect(folder, safety_checker=safety_checker).faults
        assert not faults or str(file).removesuffix(".index.json") in faults[0]
        unnamed += [] if faults else [file]
        shutil.rmtree(folder)
    assert len(unnamed) == (1 if safety_checker else 3)  # tokenizer_config.json; the checker


@pytest.mark.slow
@pytest.mark.parametrize("safety_checker", [True, False])
def test_a_file_is_missed_when_loading_misses_it(
    whole: Path, tmp_path: Path, safety_checker: bool
) -> None:
    """Without any one file, `look` has a fault exactly when the model can't be loaded."""
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file())
    assert inspect(whole, safety_checker=safety_checker).faults == []
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        (folder / file).unlink()
        faults = inspect(folder, safety_checker=safety_checker).faults
        assert bool(faults) is not loads(folder, safety_checker=safety_checker), (file, faults)
        shutil.rmtree(folder)


def test_a_tokenizer_may_be_in_two_files(whole: Path, tmp_path: Path) -> None:
    """`vocab.json` and `merges.txt` replace `tokenizer.json`; one of them alone does not."""
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    tokenizer = folder / "tokenizer"
    model = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert inspect(folder, safety_checker=True).faults == []
    assert loads(folder, safety_checker=True)
    (tokenizer / "merges.txt").unlink()
    (fault,) = inspect(folder, safety_checker=True).faults
    assert fault.startswith("tokenizer/merges.txt is not there")
    assert not loads(folder, safety_checker=True)


def cut(folder: Path) -> None:
    """Leave a file as a download that ended early does."""
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pointer(folder: Path) -> None:
    """Leave a file as a checkout without its large files does."""
    file = folder / "text_encoder/model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")


def pickled(folder: Path) -> None:
    """Leave weights in the former format, which is pickled."""
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.rename(folder / "vae/diffusion_pytorch_model.bin")


def absent(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()


def scribbled(folder: Path) -> None:
    (folder / "unet/config.json").write_text("{")


def unnamed(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))


def listed(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def unplaced(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (cut, "vae/diffusion_pytorch_model.safetensors is not complete"),
        (pointer, "text_encoder/model.safetensors is not complete"),
        (absent, "vae/diffusion_pytorch_model.safetensors is not there, and only safetensors"),
        (pickled, "vae/diffusion_pytorch_model.safetensors is not there, only vae/diffusion_pyt"),
        (scribbled, "unet/config.json cannot be read"),
        (unnamed, "model_index.json names no vae"),
        (listed, "model_index.json is not a JSON object"),
        (unplaced, "unet/diffusion_pytorch_model.safetensors.index.json has no weight_map"),
    ],
)
def test_a_broken_file_is_named(
    whole: Path, tmp_path: Path, harm: Callable[[Path], None], named: str
) -> None:
    """A file that loading refuses is one fault, which names it."""
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    harm(folder)
    (fault,) = inspect(folder, safety_checker=True).faults
    assert fault.startswith(named)
    assert not loads(folder, safety_checker=True)


def test_numbers_are_those_of_the_weights(whole: Path) -> None:
    """Parameters are counted as torch does, in one file or several."""
    pipe = model_loader.load(SPEC, "cpu", "none").pipeline
    counted = {
        part: sum(each.numel() for each in getattr(pipe, part).state_dict().values())
        for part in ("unet", "vae", "text_encoder")
    }
    found = inspect(SHIPPED_MODEL, safety_checker=False)
    assert found.parameters == counted
    assert found.largest_layers == {
        part: max(
            sum(each.numel() for each in layer.state_dict().values())
            for layer in getattr(pipe, part).modules()
            if not list(layer.children())
        )
        for part in counted
    }
    assert counted.items() < inspect(whole, safety_checker=False).parameters.items()


def test_each_part_of_xl_is_needed(tmp_path: Path) -> None:
    """A missing text encoder or tokenizer of SDXL is named."""
    folder = save_xl(tmp_path / "xl")
    assert not inspect(folder, safety_checker=False).faults
    found = inspect(folder, safety_checker=False).parameters
    assert {"text_encoder", "text_encoder_2", "unet", "vae"} == found.keys()
    for part in ("text_encoder_2/model.safetensors", "tokenizer_2/tokenizer.json"):
        content = (folder / part).read_bytes()
        (folder / part).unlink()
        assert part in inspect(folder, safety_checker=False).faults[0]
        (folder / part).write_bytes(content)
    index = json.loads((folder / "model_index.json").read_text())
    del index["text_encoder_2"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "names no text_encoder_2" in inspect(folder, safety_checker=False).faults[0]


def of_variant(folder: Path, there: Path, *parts: str, shards: bool = False) -> Path:
    """A copy whose `parts` have their weights as variant fp16 alone; the UNet's in shards."""
    shutil.copytree(folder, there)
    for part in parts:
        file = next((there / part).glob("*.safetensors"))
        file.rename(file.with_suffix(".fp16.safetensors"))
    if shards:
        (there / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
        unet = model_loader.load(SPEC, "cpu", "none").pipeline.unet
        unet.save_pretrained(there / "unet", variant="fp16", max_shard_size="8MB")
    return there


PARTS = ("unet", "vae", "text_encoder")


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


def refused(spec: ModelSpec) -> str:
    """The message of a model whose files are at fault, which `doctor` finds, too."""
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(spec, "cpu", "none")
    assert not failed.value.retryable
    for fault in inspect(Path(spec.path), safety_checker=False, variant=spec.variant).faults:
        assert fault in failed.value.message
    return failed.value.message


def test_a_variant_without_the_setting_is_named(tmp_path: Path) -> None:
    """A folder that has only a variant is refused with its name and the setting."""
    folder = of_variant(SHIPPED_MODEL, tmp_path / "model", *PARTS)
    message = refused(ModelSpec(path=str(folder), safety_checker=False))
    assert "but that of variant fp16 is: set the model's variant" in message


def test_a_variant_that_is_not_there_is_named() -> None:
    """A folder without the variant is refused, and not loaded without it in silence."""
    spec = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, variant="fp16")
    assert "no part has weights of variant 'fp16'" in refused(spec)


def test_pickled_weights_are_named(tmp_path: Path) -> None:
    """The error of a part whose weights are pickled names the file and how to convert it."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    pickled(folder)
    message = refused(ModelSpec(path=str(folder), safety_checker=False))
    assert "only vae/diffusion_pytorch_model.bin, which is pickled and not read" in message
    assert CONVERT in message


def flat(folder: Path, there: Path) -> Path:
    """A model of pixels with its UNet and scheduler beside the index."""
    there.mkdir()
    for file in folder.rglob("*.*"):
        shutil.copy(file, there / file.name)
    return there


def test_a_model_of_pixels_is_whole(tmp_path: Path) -> None:
    """It needs a UNet and a scheduler, in folders of their own or beside the index."""
    whole = save_pixels(tmp_path / "whole")
    for folder in (whole, flat(whole, tmp_path / "flat")):
        found = inspect(folder, safety_checker=False)
        assert found.faults == []
        assert set(found.parameters) == {"unet"}
        assert loads(folder, safety_checker=False)
        for file in sorted(folder.rglob("*.*")):
            content = file.read_bytes()
            file.unlink()
            assert file.name in inspect(folder, safety_checker=False).faults[0]
            assert not loads(folder, safety_checker=False)
            file.write_bytes(content)
