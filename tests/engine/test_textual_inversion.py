"""Tokens of the settings: encoded as by diffusers alone, and counted by their vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from tests.engine.cases import slow
from tests.engine.diffusers_alone import OTHER, bare, plain
from tests.engine.jobs import SPEC, Make, Rounds, apart, assert_close, job, latents_of
from worker.config.models import TextualInversion
from worker.engine.loading import model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["missing", "junk", "wrong-width"])
def test_a_token_that_does_not_load_is_named(tmp_path: Path, kind: str) -> None:
    """A missing or malformed textual inversion fails the model's loading, with its path."""
    path = tmp_path / "ring.safetensors"
    match kind:
        case "junk":
            path.write_bytes(b"junk")
        case "wrong-width":
            save_word(path, torch.ones(77))
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(spoken(path), "cpu", "none")
    assert str(path) in failed.value.message


def save_word(path: Path, vectors: torch.Tensor) -> None:
    safetensors.torch.save_file({"<ring>": vectors}, path)


def spoken(path: Path) -> Any:
    """The bundled model's settings with a token of its own."""
    token = TextualInversion(path=str(path), token="<ring>")
    return SPEC.model_copy(update={"textual_inversion": (token,)})


@pytest.mark.parametrize("vectors", [3, *slow(1)])
def test_a_token_is_diffusers_own(tmp_path: Path, make: Make, vectors: int) -> None:
    """A token of the settings is encoded as by diffusers, in the prompt and the negative prompt.

    With one vector or several; the model without it encodes something else.
    """
    path = tmp_path / "ring.safetensors"
    taught = torch.randn(vectors, 128, generator=torch.Generator().manual_seed(0))
    save_word(path, taught[0] if vectors == 1 else taught)
    rounds, pipe = Rounds(spoken(path)), bare()
    pipe.load_textual_inversion(str(path), token="<ring>")
    prompt = "a large red <ring> on a blue background"
    ours = rounds.result(job(sag_scale=0.0, prompts=(prompt,)))
    assert_close(latents_of(ours), plain(pipe, prompt=prompt))
    assert ours.truncated == ()
    assert apart(latents_of(ours), latents_of(make(sag_scale=0.0, prompts=(prompt,)))) > OTHER
    against = latents_of(rounds.result(job(sag_scale=0.0, negative_prompts=("<ring>",))))
    assert_close(against, plain(pipe, negative_prompt="<ring>"))
    assert_close(latents_of(rounds.result(job())), latents_of(make()))


def test_a_token_of_many_vectors_counts_as_many(tmp_path: Path) -> None:
    """The length of a prompt is counted in the vectors of its tokens."""
    path = tmp_path / "ring.safetensors"
    save_word(path, torch.randn(9, 128, generator=torch.Generator().manual_seed(0)))
    rounds = Rounds(spoken(path))
    fits = "<ring> <ring> <ring>"
    assert rounds.result(job(prompts=(fits,))).truncated == ()
    (lost,) = rounds.result(job(prompts=(f"{fits} star blue red green",))).truncated
    assert lost == "green"
