"""JSON files of models with odd contents: `doctor` reports them, and loading refuses them."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.jobs import SPEC
from worker.config.models import SHIPPED_MODEL, SHIPPED_PIXEL_MODEL, Adapter, ModelSpec
from worker.config.settings import Settings
from worker.doctor.checks import check_models
from worker.engine.loading import model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.doctor.finding import Finding

INDEX = "model_index.json"
SHARDS = "unet/diffusion_pytorch_model.safetensors.index.json"
CONFIGS = (
    "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json",
    "text_encoder/config.json",
)  # fmt: skip
VALUES: tuple[object, ...] = (None, [], {}, 7, "x")


def broken(whole: bytes) -> dict[str, bytes]:
    """Contents that are no JSON object, by what is wrong with them."""
    of_values = {json.dumps(each): json.dumps(each).encode() for each in VALUES if each != {}}
    unread = {"empty": b"", "cut": whole[:-5], "bytes": b"\xff" + whole, "deep": b"[" * 100_000}
    return unread | of_values


@dataclass(frozen=True)
class Odd:
    """A copy of a model with one odd file, and its settings."""

    spec: ModelSpec

    def findings(self) -> list[Finding]:
        """What `doctor` finds wrong with it; the model after it is checked, too, and is whole."""
        models = {"odd": self.spec, "whole": SPEC}
        found = list(check_models(Settings(models=models)))
        assert [each.ok for each in found if each.what == "model whole"] == [True]
        odd = [each for each in found if each.what == "model odd"]
        assert odd
        return [each for each in odd if not each.ok]

    def refusal(self) -> str | None:
        """The message of the error when it is loaded, which is final; None where it is served."""
        failed = None
        try:
            model_loader.load(self.spec, "cpu", "none")
        except ModelLoadError as error:
            failed = error
        if failed is None:
            return None
        assert not failed.retryable
        assert self.spec.path in failed.message
        return failed.message


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models by name: the bundled ones, the first with its UNet in shards, and a LoRA file."""
    folder = tmp_path_factory.mktemp("sources")
    shards = Path(shutil.copytree(SHIPPED_MODEL, folder / "shards"))
    (shards / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet = model_loader.load(SPEC, "cpu", "none").pipeline.unet
    unet.save_pretrained(shards / "unet", max_shard_size="8MB")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    halves = {"A": torch.ones(2, 128), "B": torch.ones(128, 2)}
    lora = folder / "lora.safetensors"
    save_file({f"{layer}.lora_{half}.weight": each for half, each in halves.items()}, lora)
    return {"shards": shards, "pixels": SHIPPED_PIXEL_MODEL, "lora": lora}


class Models:
    """Makes copies with one odd file."""

    def __init__(self, sources: dict[str, Path], folder: Path) -> None:
        self.sources, self.folder = sources, folder

    def content(self, model: str, file: str) -> bytes:
        """What a file of a model has."""
        return (self.sources[model] / file).read_bytes()

    def with_file(self, model: str, file: str, content: bytes) -> Odd:
        """A copy whose file has this content, with LoRA in its settings where it may have some."""
        there = self.folder / "odd"
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(self.sources[model], there, copy_function=os.link)
        (there / file).unlink()
        (there / file).write_bytes(content)
        adapters = {} if model == "pixels" else {"ink": Adapter(path=str(self.sources["lora"]))}
        return Odd(ModelSpec(path=str(there), safety_checker=False, adapters=adapters))

    def with_values(self, model: str, file: str) -> Iterator[tuple[str, Odd]]:
        """A copy for each name in a file and each odd value in its place."""
        whole = json.loads(self.content(model, file))
        for name in whole:
            for value in VALUES:
                yield name, self.with_file(model, file, json.dumps(whole | {name: value}).encode())


@pytest.fixture
def odd(sources: dict[str, Path], tmp_path: Path) -> Models:
    return Models(sources, tmp_path)


def files_of(model: str) -> tuple[str, ...]:
    if model == "pixels":
        return (INDEX, *CONFIGS[:2])
    return (INDEX, SHARDS, "tokenizer/tokenizer.json", *CONFIGS)


@pytest.mark.parametrize("what", broken(b""))
@pytest.mark.parametrize("model", ["shards", "pixels"])
def test_a_file_that_is_no_json_object_is_named(odd: Models, model: str, what: str) -> None:
    """An empty, truncated or binary file, and one with another value, is named by both."""
    for file in files_of(model):
        made = odd.with_file(model, file, broken(odd.content(model, file))[what])
        (finding,) = made.findings()
        assert file in finding.found
        refusal = made.refusal()
        assert refusal is not None, file
        assert file in refusal


@pytest.mark.parametrize("model", ["shards", "pixels"])
def test_an_index_is_read_as_loading_does(odd: Models, model: str) -> None:
    """An index with an odd value is reported exactly when the model is refused."""
    for name, made in odd.with_values(model, INDEX):
        findings, refusal = made.findings(), made.refusal()
        assert bool(findings) is (refusal is not None), (name, refusal)
        if refusal is not None:
            assert all(INDEX in text and name.removeprefix("_class_") in text
                       for text in (findings[0].found, refusal))  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (["my_pipeline", "MyPipeline"], "a custom pipeline, ['my_pipeline', 'MyPipeline']"),
        ("FluxPipeline", "names a FluxPipeline, which is not served"),
        (None, "names no pipeline; served are Stable Diffusion, Stable Diffusion XL"),
    ],
)
def test_a_pipeline_that_is_not_served_is_named(odd: Models, kind: object, named: str) -> None:
    """A custom pipeline, another family and none are each named, by `doctor` and by loading."""
    index = json.loads(odd.content("shards", INDEX)) | {"_class_name": kind}
    made = odd.with_file("shards", INDEX, json.dumps(index).encode())
    (finding,) = made.findings()
    assert named in finding.found
    assert named in (made.refusal() or "")


def test_the_files_of_shards_are_read_as_loading_does(odd: Models) -> None:
    """A table of shards with an odd value is reported exactly when the model is refused."""
    for name, made in odd.with_values("shards", SHARDS):
        assert bool(made.findings()) is (made.refusal() is not None), name
    whole = json.loads(odd.content("shards", SHARDS))
    first = next(iter(whole["weight_map"]))
    for value in VALUES:
        content = whole | {"weight_map": whole["weight_map"] | {first: value}}
        made = odd.with_file("shards", SHARDS, json.dumps(content).encode())
        assert made.findings()
        assert made.refusal()


CASES = [(model, file) for model in ("shards", "pixels") for file in files_of(model)]


def test_some_odd_values_of_configurations_are_refused(odd: Models) -> None:
    """`doctor` checks a model with any of 20 odd values; loading serves or refuses it."""
    chance = random.Random(0)
    for _ in range(20):
        model, file = chance.choice([each for each in CASES if each[1] in CONFIGS])
        whole = json.loads(odd.content(model, file))
        changed = whole | {chance.choice([*whole]): chance.choice(VALUES)}
        made = odd.with_file(model, file, json.dumps(changed).encode())
        made.findings()
        made.refusal()


@pytest.mark.slow
@pytest.mark.parametrize(("model", "file"), [each for each in CASES if each[1] in CONFIGS])
def test_all_odd_values_of_configurations_are_refused(odd: Models, model: str, file: str) -> None:
    """`doctor` checks a model with any odd value; loading serves it or refuses it by its path."""
    for _, made in odd.with_values(model, file):
        made.findings()
        made.refusal()
