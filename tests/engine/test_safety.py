"""The safety checker: its flags are in the result, and flagged pictures are black."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.engine.jobs import Rounds, job


@pytest.fixture(scope="module")
def checked() -> Rounds:
    """The bundled model with a small safety checker of random weights, as a real one is built."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = CLIPConfig(vision_config=vision, projection_dim=32)
    rounds = Rounds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = {"height": 32, "width": 32}
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    rounds.pipe.safety_checker = StableDiffusionSafetyChecker(config).eval()
    rounds.pipe.feature_extractor = processor
    return rounds


@pytest.mark.parametrize("flagged", [True, False])
def test_flags_reach_the_result(checked: Rounds, flagged: bool) -> None:
    """A flagged picture is black and flagged in the result; any other is unchanged."""
    checker = checked.pipe.safety_checker
    # A threshold below any cosine flags everything, one above flags nothing.
    checker.concept_embeds_weights.data.fill_(-2.0 if flagged else 2.0)
    checker.special_care_embeds_weights.data.fill_(2.0)
    result = checked.result(job(output_type="png"))
    picture = result.images[0]
    assert picture.nsfw_content_detected is flagged
    assert (picture.pixels.getbbox() is None) is flagged


def test_without_a_checker_nothing_is_claimed(rounds: Rounds) -> None:
    """Without a safety checker the flag is None, not False."""
    result = rounds.result(job(output_type="png"))
    assert result.images[0].nsfw_content_detected is None
