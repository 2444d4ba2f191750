"""LoRA files that are not served for a model are refused when it is loaded, and by `doctor`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from tests.engine import lora_files
from tests.engine.diffusers_alone import bare
from tests.engine.hub_server import cached
from tests.engine.jobs import SPEC
from worker.config.models import Adapter, Lora
from worker.doctor.lora import check_loras
from worker.engine.loading import model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from worker.config.models import ModelSpec

#: Layers of the bundled model, in kohya's names and in peft's.
KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PEFT = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN, UP = torch.ones(2, 128), torch.ones(128, 2)
PLAIN = {f"{KOHYA}.lora_down.weight": DOWN, f"{KOHYA}.lora_up.weight": UP}
PAIR = {f"{PEFT}.lora_A.weight": DOWN, f"{PEFT}.lora_B.weight": UP}
#: Files that are not served: what is said of each.
REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "dora": (PLAIN | {f"{KOHYA}.dora_scale": torch.ones(128, 1)}, "has DoRA"),
    "dora-of-peft": (PAIR | {f"{PEFT}.lora_magnitude_vector": torch.ones(128)}, "has DoRA"),
    "loha": ({f"{KOHYA}.hada_w1_a": UP, f"{KOHYA}.hada_w1_b": DOWN}, "has LoHa"),
    "lokr": ({f"{KOHYA}.lokr_w1": UP, f"{KOHYA}.lokr_w2": DOWN}, "has LoKr"),
    "tucker": (PLAIN | {f"{KOHYA}.lora_mid.weight": torch.ones(2, 2)}, "Tucker"),
    "oft": ({f"{KOHYA}.oft_blocks": torch.ones(2, 2, 2)}, "has OFT"),
    "biases": (PAIR | {f"{PEFT}.lora_B.bias": torch.ones(128)}, "biases"),
    "words": (PLAIN | {"bundle_emb.x.string_to_param.*": torch.ones(1, 8)}, "textual inversion"),
    "full": ({f"{KOHYA}.diff": torch.ones(128, 128)}, "no LoRA weights, such as"),
    "empty": ({}, "has no weights"),
    "scalars": ({each: torch.ones(()) for each in PAIR}, "a tensor of shape ()"),
    "vectors": ({each: torch.ones(2) for each in PAIR}, "a tensor of shape (2,)"),
    "scalars-of-kohya": (
        {each: torch.ones(()) for each in PLAIN},
        f"a tensor of shape () ('{KOHYA}.lora_",
    ),
    "of-rank-0": (
        {f"{PEFT}.lora_A.weight": DOWN[:0], f"{PEFT}.lora_B.weight": UP[:, :0]},
        f"a tensor of shape (0, 128) ('{PEFT}.lora_A.weight'), which is no LoRA weight",
    ),
    "half": ({f"{PEFT}.lora_A.weight": DOWN}, "one half alone"),
    "half-of-kohya": ({f"{KOHYA}.lora_down.weight": DOWN}, "diffusers can't read"),
    "no-such-layer": (
        PAIR | {each.replace("mid_block", "mid_block.x"): t + 1 for each, t in PAIR.items()},
        "1 of its 2 layers are not there, or of another shape, such as unet.mid_block.x.",
    ),
    "too-wide": (
        {f"{PEFT}.lora_A.weight": torch.ones(2, 64), f"{PEFT}.lora_B.weight": UP},
        "1 of its 1 layers",
    ),
    "of-no-part": (
        {each.removeprefix("unet."): t for each, t in PAIR.items()},
        "such as mid_block.attentions",
    ),
    "of-peft-alone": (
        {each.replace("unet", "base_model.model"): t for each, t in PAIR.items()},
        "names of peft's save_pretrained ('base_model.model.",
    ),
    "of-the-autoencoder": (
        PAIR
        | {
            "vae.decoder.mid_block.attentions.0.to_q.lora_A.weight": torch.ones(2, 64),
            "vae.decoder.mid_block.attentions.0.to_q.lora_B.weight": torch.ones(64, 2),
        },
        "1 of its 2 layers are not there, or of another shape, such as vae.decoder.mid_block",
    ),
    "of-another-kind": (
        {each.replace("unet", "transformer"): t for each, t in PAIR.items()},
        "such as transformer.mid_block",
    ),
}


def naming(path: Path, *, by_request: bool) -> ModelSpec:
    """The bundled model with a LoRA file."""
    if by_request:
        return SPEC.model_copy(update={"adapters": {"ink": Adapter(path=str(path))}})
    return SPEC.model_copy(update={"lora": (Lora(path=str(path)),)})


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_named(tmp_path: Path, name: str) -> None:
    """Loading a model fails with the file, what it has, and for good; `doctor` says the same.

    For the model's own LoRA and for those by request.
    """
    tensors, what = REFUSED[name]
    path = tmp_path / "ink.safetensors"
    safetensors.torch.save_file(tensors, path)
    for by_request in (True, False):
        spec = naming(path, by_request=by_request)
        with pytest.raises(ModelLoadError) as failed:
            model_loader.load(spec, "cpu", "none")
        assert str(path) in failed.value.message
        assert what in failed.value.message
        assert not failed.value.retryable
        (finding,) = check_loras("model a", spec)
        assert (finding.ok, what in finding.found) == (False, True)


def test_what_is_no_safetensors_file_is_named(tmp_path: Path) -> None:
    """Junk, a file that is not there, and folders with none or several are named."""
    (tmp_path / "two").mkdir()
    (tmp_path / "none").mkdir()
    for name in ("a", "b"):
        safetensors.torch.save_file(PAIR, tmp_path / "two" / f"{name}.safetensors")
    (tmp_path / "junk").write_bytes(b"junk")
    for name in ("two", "none", "junk", "missing"):
        path = tmp_path / name
        with pytest.raises(ModelLoadError, match=str(path)):
            model_loader.load(naming(path, by_request=True), "cpu", "none")


def test_files_of_the_hubs_cache_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` compares a LoRA file of the cache with a model of the cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    tensors, what = REFUSED["no-such-layer"]
    shutil.copytree(SPEC.path, cached(tmp_path, "owner/name"), dirs_exist_ok=True)
    lora = cached(tmp_path, "owner/ink")
    spec = naming(Path("owner/ink"), by_request=True).model_copy(update={"path": "owner/name"})
    assert [*check_loras("model a", spec)] == []
    safetensors.torch.save_file(tensors, lora / "ink.safetensors")
    (finding,) = check_loras("model a", spec)
    assert (finding.ok, what in finding.found) == (False, True)
    safetensors.torch.save_file(PAIR, lora / "more.safetensors")
    (finding,) = check_loras("model a", spec)
    assert "a hub id can't name a file" in finding.found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_files_that_are_served_have_no_fault(tmp_path: Path, dtype: torch.dtype) -> None:
    """Each form of file, in a folder too, in any precision, is found to be of the model."""
    pipe: Any = bare(SPEC.path)
    made = lora_files.layers(pipe, 0, unet=r"to_|conv|ff", texts=r"(q|k|v|out)_proj|fc")
    for form in ("kohya", "peft", "diffusers"):
        path = tmp_path / form / "pytorch_lora_weights.safetensors"
        path.parent.mkdir()
        lora_files.save(path, made, form, dtype)
        for each in (path, path.parent):
            assert [*check_loras("model a", naming(each, by_request=True))] == []
