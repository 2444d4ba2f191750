"""Captions say what is drawn, and those held out are never trained on."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import numpy as np

from training import dataset
from training.evaluate import (
    PROMPTS,
    PROMPTS_SEED,
    TUNING_PROMPTS,
    TUNING_SEED,
    held_out_scenes,
)
from training.shapes import SIDE_PX, Scene, draw_scene, pair, single

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SINGLE = re.compile(
    r"an? (?:(?P<size>small|large) )?(?P<colour>\w+) (?P<shape>\w+)"
    r"(?: (?P<place>on the left|on the right|at the top|at the bottom))? on an? (\w+) background"
)
PAIR = re.compile(r"an? (\w+) (\w+) (left of|above) an? (\w+) (\w+) on an? (\w+) background")


def _parsed(caption: str) -> Scene:
    if found := PAIR.fullmatch(caption):
        colour, shape, relation, other_colour, other_shape, background = found.groups()
        return pair((colour, shape), relation, (other_colour, other_shape), background)
    found = SINGLE.fullmatch(caption)
    assert found, caption
    size, colour, shape, place, background = found.groups(default="")
    return single(colour, shape, background, size, place)


def test_a_caption_says_all_of_its_scene() -> None:
    """A scene can be read back from its caption alone."""
    rng = random.Random(0)
    for row in range(1000):
        scene = draw_scene(rng, held_out=row % 2 == 0)
        assert _parsed(scene.caption) == scene


def test_a_tenth_is_held_out() -> None:
    """The split keeps about one caption in ten from training."""
    rng = random.Random(0)
    kept = [_parsed(draw_scene(rng, held_out=False).caption).held_out for _ in range(300)]
    assert not any(kept)
    captions = {
        single(c, s, "black", z).caption
        for c in ("red", "pink", "cyan", "white")
        for s in ("star", "ring", "cross", "circle", "square", "triangle")
        for z in ("", "small", "large")
    }
    scenes = [_parsed(caption) for caption in captions]
    assert 0.02 < sum(scene.held_out for scene in scenes) / len(scenes) < 0.25


def test_the_dataset_holds_no_held_out_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No training picture has a caption of the evaluation, and a seed gives one dataset."""
    monkeypatch.setattr(dataset, "PICTURES", 200)
    monkeypatch.setattr(dataset, "CHUNK", 100)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    drawn = dataset.load_or_draw(tmp_path / "a", 0)
    again = dataset.load_or_draw(tmp_path / "b", 0)
    assert drawn.pixels.shape == (200, SIDE_PX, SIDE_PX, 3)
    assert not any(_parsed(caption).held_out for caption in drawn.captions)
    assert drawn.captions == again.captions
    assert np.array_equal(drawn.pixels, again.pixels)


def test_evaluation_and_tuning_share_no_prompt() -> None:
    """The prompts that choose the guidance scale are not those that are reported."""
    scenes = held_out_scenes(PROMPTS, PROMPTS_SEED)
    captions = {scene.caption for scene in scenes}
    tuning = {s.caption for s in held_out_scenes(TUNING_PROMPTS, TUNING_SEED, captions)}
    assert (len(captions), len(tuning)) == (PROMPTS, TUNING_PROMPTS)
    assert not captions & tuning
    assert all(scene.held_out for scene in scenes)
