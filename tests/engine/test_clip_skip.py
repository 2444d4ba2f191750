"""`clip_skip`: equal to diffusers with the embeddings of fewer layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.engine.cases import rotated, slow
from tests.engine.diffusers_alone import OTHER, PROMPT, plain
from tests.engine.jobs import Make, Rounds, apart, assert_close, job, latents_of
from worker.errors import BadRequestError


def encoded(pipe: Any, text: str, layers: int) -> torch.Tensor:
    """Embeddings of a text encoder that ends after so many layers and its last norm."""
    encoder = copy.deepcopy(pipe.text_encoder)
    encoder.encoder.layers = encoder.encoder.layers[:layers]
    ids = pipe.tokenizer(
        text, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        embeds: torch.Tensor = encoder(ids)[0]
    return embeds


@pytest.mark.parametrize(("clip_skip", "guidance_scale"), rotated((0, 1, 2), (1.0, 3.0), slow))
def test_clip_skip_leaves_out_the_last_layers(
    rounds: Rounds, make: Make, clip_skip: int, guidance_scale: float
) -> None:
    """The prompt is encoded without the last layers, the negative prompt with all of them.

    As diffusers does, with versions of transformers where its own way works.
    """
    layers = len(rounds.pipe.text_encoder.encoder.layers)
    ours = make(sag_scale=0.0, clip_skip=clip_skip, guidance_scale=guidance_scale)
    pair = {
        "prompt": None,
        "prompt_embeds": encoded(rounds.pipe, PROMPT, layers - clip_skip),
        "negative_prompt_embeds": encoded(rounds.pipe, "", layers),
    }
    theirs = StableDiffusionPipeline(**rounds.pipe.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    assert_close(latents_of(ours), plain(theirs, guidance_scale=guidance_scale, **pair))
    whole = latents_of(make(sag_scale=0.0, guidance_scale=guidance_scale))
    assert (apart(latents_of(ours), whole) > OTHER) == (clip_skip > 0)


def test_clip_skips_of_jobs_at_once_do_not_mix(rounds: Rounds) -> None:
    """Prompts of different `clip_skip` that are encoded together do not affect each other."""
    wanted = [job(clip_skip=skip) for skip in (None, 1, 2)]
    alone = [latents_of(rounds.result(each)) for each in wanted]
    together = [rounds.submit(each) for each in wanted]
    rounds.run()
    for ours, expected in zip(together, alone, strict=True):
        assert_close(latents_of(ours.result(timeout=0)), expected)


@pytest.mark.parametrize("clip_skip", [3, 32])
def test_clip_skip_leaves_something(make: Make, clip_skip: int) -> None:
    """A `clip_skip` of all layers or more is refused by field."""
    with pytest.raises(BadRequestError) as refused:
        make(clip_skip=clip_skip)
    (fault,) = refused.value.details["faults"]
    assert fault["where"] == "clip_skip"
    assert str(clip_skip) in fault["what"]
