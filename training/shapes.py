"""The world that the small model knows: coloured shapes on a coloured background.

Owns the scenes, their captions and how they are drawn. Knows nothing of networks.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    import random

SIDE_PX = 64
#: Drawn at this multiple and reduced, for smooth edges.
OVERSAMPLING = 4

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (215, 25, 30),
    "orange": (255, 140, 0),
    "yellow": (255, 235, 40),
    "green": (25, 150, 50),
    "cyan": (50, 215, 225),
    "blue": (25, 60, 215),
    "purple": (125, 35, 165),
    "pink": (255, 140, 195),
    "white": (248, 248, 248),
    "black": (10, 10, 10),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
#: Half the width of a shape, in pixels of the finished picture.
RADIUS_PX = {"small": 11.0, "": 16.0, "large": 23.0}
#: Offset of a shape's middle from the picture's, as a share of the free room.
PLACES: dict[str, tuple[int, int]] = {
    "": (0, 0),
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
}
#: Where the two shapes of a pair stand, as offsets in pixels.
RELATIONS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "left of": ((-16, 0), (16, 0)),
    "above": ((0, -16), (0, 16)),
}
PAIR_RADIUS_PX = 12.0
#: One scene in this many is kept out of training, chosen by a hash of its caption.
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Thing:
    """One shape: its kind, its colour, and where it stands, in pixels."""

    shape: str
    colour: str
    x_px: float
    y_px: float
    radius_px: float


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn: its caption, its background and its one or two shapes."""

    caption: str
    background: str
    things: tuple[Thing, ...]

    @property
    def held_out(self) -> bool:
        """Whether this caption is kept for the evaluation and never trained on."""
        digest = hashlib.sha256(self.caption.encode()).digest()
        return digest[0] % HELD_OUT_ONE_IN == 0


def single(colour: str, shape: str, background: str, size: str = "", place: str = "") -> Scene:
    """One shape on a background; `size` and `place` are keys of `RADIUS_PX` and `PLACES`."""
    radius_px = RADIUS_PX[size]
    room_px = SIDE_PX / 2 - radius_px - 3
    dx, dy = PLACES[place]
    middle = SIDE_PX / 2
    thing = Thing(shape, colour, middle + dx * room_px, middle + dy * room_px, radius_px)
    words = (size, colour, shape, place, "on", _a(background), "background")
    return Scene(_a(" ".join(word for word in words if word)), background, (thing,))


def pair(first: tuple[str, str], relation: str, second: tuple[str, str], background: str) -> Scene:
    """Two shapes, each a (colour, shape), the first `left of` or `above` the second."""
    middle = SIDE_PX / 2
    things = tuple(
        Thing(shape, colour, middle + dx, middle + dy, PAIR_RADIUS_PX)
        for (colour, shape), (dx, dy) in zip((first, second), RELATIONS[relation], strict=True)
    )
    caption = (
        f"{_a(first[0])} {first[1]} {relation} {_a(second[0])} {second[1]}"
        f" on {_a(background)} background"
    )
    return Scene(caption, background, things)


def _a(words: str) -> str:
    return f"an {words}" if words.startswith("orange") else f"a {words}"


def draw_scene(rng: random.Random, *, held_out: bool) -> Scene:
    """A random scene from one side of the split: singles and pairs, every word as likely."""
    while True:
        scene = _any_pair(rng) if rng.random() < 0.35 else _any_single(rng)
        if scene.held_out == held_out:
            return scene


def _any_single(rng: random.Random) -> Scene:
    colour, background = rng.sample(sorted(COLOURS), 2)
    size = rng.choice(("small", "", "large", "large"))
    place = "" if size == "large" else rng.choice(sorted(PLACES))
    return single(colour, rng.choice(SHAPES), background, size, place)


def _any_pair(rng: random.Random) -> Scene:
    first, second, background = rng.sample(sorted(COLOURS), 3)
    shapes = rng.choice(SHAPES), rng.choice(SHAPES)
    return pair((first, shapes[0]), rng.choice(sorted(RELATIONS)), (second, shapes[1]), background)


def jittered(scene: Scene, rng: random.Random) -> Scene:
    """The scene with its shapes moved and scaled a little, as training pictures are."""
    return replace(
        scene,
        things=tuple(
            replace(
                thing,
                x_px=thing.x_px + rng.uniform(-1.5, 1.5),
                y_px=thing.y_px + rng.uniform(-1.5, 1.5),
                radius_px=thing.radius_px * rng.uniform(0.94, 1.04),
            )
            for thing in scene.things
        ),
    )


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, `SIDE_PX` square, RGB."""
    big = Image.new("RGB", (SIDE_PX * OVERSAMPLING,) * 2, COLOURS[scene.background])
    for thing in scene.things:
        big.paste(COLOURS[thing.colour], mask=stencil(thing, big.width))
    return big.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)


def stencil(thing: Thing, side_px: int) -> Image.Image:
    """The area that a shape covers, as an 8-bit mask of a canvas `side_px` wide."""
    scale = side_px / SIDE_PX
    x, y, r = thing.x_px * scale, thing.y_px * scale, thing.radius_px * scale
    mask = Image.new("L", (side_px, side_px), 0)
    pen = ImageDraw.Draw(mask)
    box = (x - r, y - r, x + r, y + r)
    match thing.shape:
        case "circle":
            pen.ellipse(box, fill=255)
        case "ring":
            pen.ellipse(box, fill=255)
            hole = r * 0.52
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        case "square":
            half = r * 0.88
            pen.rectangle((x - half, y - half, x + half, y + half), fill=255)
        case "cross":
            arm = r * 0.33
            pen.rectangle((x - r, y - arm, x + r, y + arm), fill=255)
            pen.rectangle((x - arm, y - r, x + arm, y + r), fill=255)
        case "triangle":
            pen.polygon([(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)], fill=255)
        case "star":
            pen.polygon(_star(x, y, r), fill=255)
        case _:
            message = f"unknown shape {thing.shape!r}; known are {', '.join(SHAPES)}"
            raise ValueError(message)
    return mask


def _star(x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Ten corners of a five-pointed star whose tips lie on a circle of radius `r`."""
    corners = []
    for corner in range(10):
        reach = r if corner % 2 == 0 else r * 0.42
        angle = math.pi * corner / 5 - math.pi / 2
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return corners
