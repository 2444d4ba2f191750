"""What `doctor` reports about a model's folder, compared with loading it."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from typing import TYPE_CHECKING

import pytest
import torch

from tests.engine.jobs import SPEC
from tests.engine.model_folders import (
    absent,
    cut,
    flat,
    listed,
    loads,
    pickled,
    pointer,
    refused,
    scribbled,
    unnamed,
    unplaced,
)
from tests.engine.small_models import save_pixels, save_xl
from worker.config.models import CONVERT, SHIPPED_MODEL, ModelSpec
from worker.engine.loading import model_loader
from worker.engine.loading.model_files import inspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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


def test_pickled_weights_are_named(tmp_path: Path) -> None:
    """The error of a part whose weights are pickled names the file and how to convert it."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    pickled(folder)
    message = refused(ModelSpec(path=str(folder), safety_checker=False))
    assert "only vae/diffusion_pytorch_model.bin, which is pickled and not read" in message
    assert CONVERT in message


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
