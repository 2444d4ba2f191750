"""The judge finds every attribute of a picture, and none that is not there."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from training.judge import Verdict, judge
from training.shapes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIDE_PX,
    Scene,
    draw_scene,
    jittered,
    pair,
    render,
    single,
)
from training.sight import look

RIGHT = Verdict(background=True, colour=True, shape=True, size=True, place=True)
PAIR = pair(("red", "star"), "left of", ("blue", "ring"), "white")


def _scenes(count: int, seed: int) -> list[tuple[Scene, Image.Image]]:
    rng = random.Random(seed)
    scenes = [draw_scene(rng, held_out=row % 2 == 0) for row in range(count)]
    return [(scene, render(jittered(scene, rng))) for scene in scenes]


@pytest.mark.parametrize("count", [40, pytest.param(150, marks=pytest.mark.slow)])
def test_reads_every_drawn_picture(count: int) -> None:
    """A picture drawn for a scene is right in every attribute."""
    for scene, picture in _scenes(count, seed=1):
        assert judge(picture, scene) == RIGHT, scene.caption


@pytest.mark.parametrize("blur_px", [0.6, 1.0])
def test_reads_blurred_pictures(blur_px: float) -> None:
    """A little blur, as a decoder makes it, changes no verdict."""
    for scene, picture in _scenes(40, seed=2):
        assert judge(picture.filter(ImageFilter.GaussianBlur(blur_px)), scene) == RIGHT


def test_reads_noisy_pictures() -> None:
    """Noise of 12 of 255 changes no verdict."""
    noise = np.random.default_rng(3)
    for scene, picture in _scenes(40, seed=3):
        noisy = np.asarray(picture) + noise.normal(0, 12, (SIDE_PX, SIDE_PX, 3))
        assert judge(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), scene) == RIGHT


@pytest.mark.parametrize("colour", sorted(COLOURS))
def test_a_blank_picture_shows_nothing(colour: str) -> None:
    """A picture of one colour has a background and no things, whatever was asked."""
    view = look(Image.new("RGB", (SIDE_PX, SIDE_PX), COLOURS[colour]))
    assert (view.background, view.things) == (colour, ())


@pytest.mark.parametrize("asked", SHAPES)
@pytest.mark.parametrize("drawn", SHAPES)
def test_tells_the_shapes_apart(asked: str, drawn: str) -> None:
    """A shape is right exactly when it is the one asked for."""
    verdict = judge(render(single("green", drawn, "black")), single("green", asked, "black"))
    assert verdict == replace(RIGHT, shape=asked == drawn)


def test_tells_the_colours_apart() -> None:
    """A colour, of shape or background, is right exactly when it is the one asked for."""
    for colour in COLOURS:
        for other in COLOURS.keys() - {colour}:
            picture = render(single(colour, "cross", other))
            verdict = judge(picture, single(other, "cross", colour))
            assert not verdict.colour
            assert not verdict.background


@pytest.mark.parametrize("asked", PLACES)
@pytest.mark.parametrize("drawn", PLACES)
def test_tells_the_places_apart(asked: str, drawn: str) -> None:
    """A place is right exactly when it is the one asked for."""
    picture = render(single("red", "star", "cyan", "small", drawn))
    verdict = judge(picture, single("red", "star", "cyan", "small", asked))
    assert verdict == replace(RIGHT, place=asked == drawn)


def test_swapped_places_are_wrong() -> None:
    """Two shapes that changed sides are wrong in their place."""
    swapped = pair(("blue", "ring"), "left of", ("red", "star"), "white")
    assert judge(render(swapped), PAIR) == replace(RIGHT, place=False)


def test_swapped_colours_are_wrong() -> None:
    """Two shapes that changed colours are wrong in their colours."""
    swapped = pair(("blue", "star"), "left of", ("red", "ring"), "white")
    assert judge(render(swapped), PAIR) == replace(RIGHT, colour=False)


def test_the_other_relation_is_wrong() -> None:
    """A shape above another is wrong in its place when it is asked for at the left of it."""
    above = pair(("red", "star"), "above", ("blue", "ring"), "white")
    assert judge(render(above), PAIR) == replace(RIGHT, place=False)


def test_one_shape_too_many_or_too_few_is_wrong() -> None:
    """A picture with another number of shapes is right in its background alone."""
    nothing = Verdict(background=True, colour=False, shape=False, size=False, place=False)
    one = replace(PAIR, things=PAIR.things[:1])
    assert judge(render(PAIR), one) == nothing
    assert judge(render(one), PAIR) == nothing


def test_a_blob_is_no_shape() -> None:
    """A patch that fits none of the six shapes is none of them."""
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), COLOURS["white"])
    picture.paste(COLOURS["red"], (8, 26, 56, 36))
    (bar,) = look(picture).things
    assert (bar.colour, bar.shape) == ("red", None)


def test_refuses_another_size() -> None:
    """A picture of another size is an error, not a guess."""
    with pytest.raises(ValueError, match="64 x 64 px"):
        look(Image.new("RGB", (96, 96)))
