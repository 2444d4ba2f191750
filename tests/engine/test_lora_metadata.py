"""What a LoRA file's own metadata may change: the scale of its layers, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig

from tests.engine import lora_files
from tests.engine.diffusers_alone import OTHER, bare
from tests.engine.jobs import SPEC, Rounds, apart, assert_close, job, latents_of
from tests.engine.served_adapters import by_oracle
from worker.config.models import Lora
from worker.doctor.lora import check_loras
from worker.engine.loading import model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from worker.config.models import ModelSpec

INK = job(loras=(("ink", 1.0),))
#: Names of layers of the bundled model in a regular expression of peft's, and where the layers are.
PATTERNS = {"unet": r"^mid_block.*to_q", "text_encoder": r"text_model\.encoder\.layers\.0\..*"}
RANK = 2


@pytest.fixture(scope="module")
def made() -> list[lora_files.Layer]:
    """LoRA weights of one rank for UNet and text encoder, without alphas."""
    found = lora_files.layers(bare(SPEC.path), 0, texts=lora_files.TEXTS)
    return [
        replace(each, down=each.down[:RANK].clone(), up=each.up[:, :RANK].clone(), alpha=RANK)
        for each in found
    ]


def save(path: Path, made: list[lora_files.Layer], **values: Any) -> Path:
    """Write a file as `save_lora_weights` does, with these values in the metadata of each part."""
    noted: dict[str, Any] = {}
    for part in ("unet", "text_encoder"):
        targets = [each.name for each in made if each.part == part]
        own = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets).to_dict() | values
        own["target_modules"] = sorted(own["target_modules"])
        noted |= {f"{part}.{name}": value for name, value in own.items()}
    return save_noted(path, made, json.dumps(noted))


def save_noted(path: Path, made: list[lora_files.Layer], noted: str) -> Path:
    """Write a file with a text as its metadata."""
    lora_files.save(path, made)
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {LORA_ADAPTER_METADATA_KEY: noted})
    return path


def specs(path: Path) -> list[ModelSpec]:
    """The bundled model with a file as an adapter, and as its own LoRA."""
    own = SPEC.model_copy(update={"lora": (Lora(path=str(path)),)})
    return [lora_files.with_adapters(SPEC, {"ink": path}), own]


def assert_refused(path: Path, *parts: str) -> None:
    """Loading fails for good, for an adapter and a model's own LoRA, and `doctor` says the same."""
    for spec in specs(path):
        with pytest.raises(ModelLoadError) as failed:
            model_loader.load(spec, "cpu", "none")
        assert not failed.value.retryable
        (finding,) = check_loras("model a", spec)
        assert not finding.ok
        for said in (failed.value.message, finding.found):
            assert [each for each in (str(path), *parts) if each not in said] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("modules_to_save", ["conv_in"]),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["conv_in.weight"]),
        ("use_qalora", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", ["pissa"]),
        ("use_a_kind_of_tomorrow", True),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, made: list[lora_files.Layer], key: str, value: object
) -> None:
    """Metadata that changes what is computed is named: its key and its value."""
    path = save(tmp_path / "ink.safetensors", made, **{key: value})
    assert_refused(path, f"unet.{key}", repr(value))


@pytest.mark.parametrize(
    "noted",
    [
        "{",
        "[]",
        '{"unet.r": 2}',
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": 2, "unet.alpha_pattern": {"(": 1}}',
        '{"unet.lora_alpha": 2, "unet.alpha_pattern": [1]}',
    ],
)
def test_metadata_that_cannot_be_read_is_refused(
    tmp_path: Path, made: list[lora_files.Layer], noted: str
) -> None:
    """Malformed metadata is named as such."""
    assert_refused(save_noted(tmp_path / "ink.safetensors", made, noted), "metadata")


def test_alphas_in_both_places_are_refused(tmp_path: Path, made: list[lora_files.Layer]) -> None:
    """A file with kohya's alphas and metadata does not say which of them holds."""
    path = save(tmp_path / "ink.safetensors", made)
    with safetensors.safe_open(path, "pt") as file:
        noted = file.metadata()
    lora_files.save(path, made, "kohya")
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, noted)
    assert_refused(path, "alphas", "metadata")


def own_weights(rounds: Rounds) -> dict[str, torch.Tensor]:
    """The model's own weights, by names that do not depend on adapters."""
    return {
        f"{part}.{name.replace('.base_layer', '')}": each.detach().clone()
        for part in ("unet", "text_encoder")
        for name, each in getattr(rounds.pipe, part).named_parameters()
        if ".lora_" not in name
    }


def adapted(rounds: Rounds, key: str) -> set[tuple[str, str]]:
    """The layers that have weights of an adapter."""
    return {
        (part, name)
        for part in ("unet", "text_encoder")
        for name, each in getattr(rounds.pipe, part).named_modules()
        if key in getattr(each, "lora_A", ())
    }


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": ["to_q", "to_v", "q_proj", "k_proj", "fc2"], "init_lora_weights": False},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.5},
        {"init_lora_weights": "orthogonal", "r": 8, "rank_pattern": {"to_q": 4}},
        {"exclude_modules": ["to_q"], "layers_to_transform": [0], "layers_pattern": "blocks"},
    ],
)
def test_what_a_file_was_trained_with_has_no_effect(
    tmp_path: Path, made: list[lora_files.Layer], values: dict[str, Any]
) -> None:
    """Layers, ranks and weights are those of the file's tensors, and the model's stay as they are.

    Dropout, initial weights and names of layers in metadata change no bit.
    """
    plain, noted = tmp_path / "plain.safetensors", tmp_path / "noted.safetensors"
    lora_files.save(plain, made)
    save(noted, made, **values)
    for before, after, wanted, key in zip(
        specs(plain), specs(noted), (INK, job()), ("request-ink", "lora0"), strict=True
    ):
        expected = latents_of(Rounds(before).result(wanted))
        rounds = Rounds(after)
        weights = own_weights(rounds)
        assert torch.equal(latents_of(rounds.result(wanted)), expected)
        assert torch.equal(latents_of(rounds.result(wanted)), expected)
        kept = own_weights(rounds)
        assert kept.keys() == weights.keys()
        assert all(torch.equal(each, weights[name]) for name, each in kept.items())
        assert adapted(rounds, key) == {(each.part, each.name) for each in made}


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_scale_is_that_of_the_metadata(
    tmp_path: Path, made: list[lora_files.Layer], use_rslora: bool
) -> None:
    """Alphas, patterns of alphas and rank-stabilised LoRA mean what peft means by them."""
    pattern = {PATTERNS["unet"]: 0.5, PATTERNS["text_encoder"]: 4.0}
    path = save(
        tmp_path / "ink.safetensors",
        made,
        lora_alpha=1.5,
        alpha_pattern=pattern,
        use_rslora=use_rslora,
    )
    meant = []
    for each in made:
        alpha = 1.5
        if each.part == "unet" and each.name.startswith("mid_block") and "to_q" in each.name:
            alpha = 0.5
        if each.part == "text_encoder" and "layers.0." in each.name:
            alpha = 4.0
        meant.append(replace(each, alpha=alpha * (RANK**0.5 if use_rslora else 1)))
    pipe = bare(SPEC.path)
    lora_files.merge(pipe, meant, 1.0)
    request, own = specs(path)
    expected = by_oracle(pipe, job())
    assert_close(latents_of(Rounds(request).result(INK)), expected)
    assert_close(latents_of(Rounds(own).result(job())), expected)
    lora_files.save(path, made)
    assert apart(latents_of(Rounds(request).result(INK)), expected) > OTHER


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")
def test_the_scale_is_diffusers_scale(tmp_path: Path, made: list[lora_files.Layer]) -> None:
    """Loaded by diffusers alone, a file with alphas in its metadata is the same."""
    path = save(
        tmp_path / "ink.safetensors", made, lora_alpha=3, alpha_pattern={"to_q": 1, "fc1": 5}
    )
    pipe = bare(SPEC.path)
    pipe.load_lora_weights(str(path))
    assert_close(latents_of(Rounds(specs(path)[0]).result(INK)), by_oracle(pipe, job()))
