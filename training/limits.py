"""What the model was not trained for, tried and counted: other words, phrases, counts, sizes."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from training.judge import compare
from training.sampling import Sampling, draw
from training.shapes import COLOURS, PAIR_RADIUS_PX, SHAPES, SIDE_PX, Scene, Thing, single
from training.shares import Share, share
from training.sight import look

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import StableDiffusionSAGPipeline

PROMPTS = 25
SEED = 3
OTHER_SIDES_PX = (48, 96, 128)
OTHER_WORDS = {
    "red": "crimson",
    "orange": "amber",
    "yellow": "golden",
    "green": "emerald",
    "cyan": "turquoise",
    "blue": "navy",
    "purple": "violet",
    "pink": "rose",
    "white": "ivory",
    "black": "ebony",
    "circle": "disc",
    "square": "box",
    "triangle": "pyramid",
    "star": "asterisk",
    "ring": "hoop",
    "cross": "plus sign",
}


@dataclass(frozen=True)
class Limit:
    """One departure from the training captions, with an example and what came out right."""

    name: str
    example: str
    #: As many shapes as asked for, whatever they are.
    count: Share
    background: Share
    #: Everything right, of what can be judged.
    everything: Share


def measure(pipeline: StableDiffusionSAGPipeline, sampling: Sampling) -> list[Limit]:
    """Draw `PROMPTS` pictures for each departure; the first row is none, to compare with."""
    scenes = _large_singles()
    rows = [
        ("as trained", sampling, [scene.caption for scene in scenes]),
        ("other words", sampling, [_reworded(scene.caption) for scene in scenes]),
        ("other phrasing", sampling, [_rephrased(scene) for scene in scenes]),
    ]
    for side_px in OTHER_SIDES_PX:
        rows.append((f"{side_px} px", replace(sampling, side_px=side_px), rows[0][2]))
    limits = [_limit(pipeline, *row, scenes) for row in rows]
    three = [_three(scene, rng) for scene, rng in zip(scenes, _streams(), strict=True)]
    captions = [scene.caption for scene in three]
    return [*limits, _limit(pipeline, "three shapes", sampling, captions, three)]


def _streams() -> list[random.Random]:
    return [random.Random(f"{SEED}/{row}") for row in range(PROMPTS)]


def _large_singles() -> list[Scene]:
    """Held-out scenes with one large shape, which the model draws best."""
    rng = random.Random(SEED)
    scenes: dict[str, Scene] = {}
    while len(scenes) < PROMPTS:
        colour, background = rng.sample(sorted(COLOURS), 2)
        scene = single(colour, rng.choice(SHAPES), background, "large")
        if scene.held_out:
            scenes[scene.caption] = scene
    return list(scenes.values())


def _reworded(caption: str) -> str:
    words = " ".join(OTHER_WORDS.get(word, word) for word in caption.split())
    return re.sub(r"\ban? (?=[aeiou])", "an ", re.sub(r"\ban? (?=[^aeiou])", "a ", words))


def _rephrased(scene: Scene) -> str:
    (thing,) = scene.things
    return f"the background is {scene.background} and the {thing.shape} on it is {thing.colour}"


def _three(scene: Scene, rng: random.Random) -> Scene:
    """Three shapes side by side on the scene's background."""
    free = sorted(set(COLOURS) - {scene.background})
    middle = SIDE_PX / 2
    things = tuple(
        Thing(rng.choice(SHAPES), colour, middle + dx, middle, PAIR_RADIUS_PX)
        for colour, dx in zip(rng.sample(free, 3), (-20, 0, 20), strict=True)
    )
    words = " left of ".join(f"a {thing.colour} {thing.shape}" for thing in things)
    return Scene(f"{words} on a {scene.background} background", scene.background, things)


def _limit(
    pipeline: StableDiffusionSAGPipeline,
    name: str,
    sampling: Sampling,
    prompts: list[str],
    scenes: list[Scene],
) -> Limit:
    pictures = draw(pipeline, prompts, sampling)
    if sampling.side_px != SIDE_PX:
        size = (SIDE_PX, SIDE_PX)
        pictures = [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]
    views = [(look(picture), scene) for picture, scene in zip(pictures, scenes, strict=True)]

    def counted(right: Callable[[int], bool]) -> Share:
        return share(sum(right(row) for row in range(len(views))), len(views))

    return Limit(
        name,
        prompts[0],
        count=counted(lambda row: len(views[row][0].things) == len(views[row][1].things)),
        background=counted(lambda row: views[row][0].background == views[row][1].background),
        everything=counted(lambda row: compare(*views[row]).everything),
    )
