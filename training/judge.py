"""Whether a picture shows the scene asked for, attribute by attribute.

Compares what `sight` read off the pixels with a scene. Draws nothing and knows no network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise, permutations
from typing import TYPE_CHECKING

from training.shapes import PLACES, RADIUS_PX, RELATIONS, SIDE_PX
from training.sight import look

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from training.shapes import Scene, Thing
    from training.sight import Seen, View

#: How far a shape may stand from where the words put it: half way from "on the left" to the
#: middle for a medium shape. Training pictures are moved by up to 1.5 px each way.
REACH_PX = 6.5


@dataclass(frozen=True)
class Verdict:
    """Which attributes of the scene the picture got right; of a pair, both shapes' or neither's."""

    background: bool
    colour: bool
    shape: bool
    size: bool
    place: bool

    @property
    def everything(self) -> bool:
        """Whether the picture shows exactly what was asked."""
        return all(getattr(self, field.name) for field in fields(self))


def judge(picture: Image.Image, scene: Scene) -> Verdict:
    """The verdict on a 64 px RGB picture that was asked to show `scene`."""
    return compare(look(picture), scene)


def compare(view: View, scene: Scene) -> Verdict:
    """The verdict on what was seen; one thing too many or too few is wrong in every attribute."""
    background = view.background == scene.background
    if len(view.things) != len(scene.things):
        return Verdict(background, colour=False, shape=False, size=False, place=False)
    seen = _matched(view.things, scene.things)
    pairs = list(zip(seen, scene.things, strict=True))
    return Verdict(
        background,
        colour=all(one.colour == asked.colour for one, asked in pairs),
        shape=all(one.shape == asked.shape for one, asked in pairs),
        size=all(size(one.radius_px) == size(asked.radius_px) for one, asked in pairs),
        place=place(seen) == place(scene.things),
    )


def size(radius_px: float) -> str:
    """The size word whose radius is nearest, "" for the middle one."""
    return min(RADIUS_PX, key=lambda word: abs(RADIUS_PX[word] - radius_px))


def place(things: Sequence[Seen | Thing]) -> str | None:
    """The place words for one shape, or how each of several stands to the next; None if neither."""
    if len(things) == 1:
        return _single_place(things[0])
    relations = {_relation(*neighbours) for neighbours in pairwise(things)}
    return relations.pop() if len(relations) == 1 else None


def _relation(first: Seen | Thing, second: Seen | Thing) -> str | None:
    towards = (second.x_px - first.x_px, second.y_px - first.y_px)
    for relation, ((x0, y0), (x1, y1)) in RELATIONS.items():
        if math.dist(towards, (x1 - x0, y1 - y0)) <= 2 * REACH_PX:
            return relation
    return None


def _single_place(thing: Seen | Thing) -> str | None:
    middle = SIDE_PX / 2
    room_px = middle - RADIUS_PX[size(thing.radius_px)] - 3
    distances = {
        word: math.dist((thing.x_px, thing.y_px), (middle + dx * room_px, middle + dy * room_px))
        for word, (dx, dy) in PLACES.items()
    }
    nearest = min(distances, key=lambda word: distances[word])
    return nearest if distances[nearest] <= REACH_PX else None


def _matched(seen: tuple[Seen, ...], asked: tuple[Thing, ...]) -> tuple[Seen, ...]:
    """The things seen in the order of those asked for, so that most words come out right.

    Where two orders are as good, the one that gets the place right: a pair whose colours were
    swapped is then wrong in its colours, and one that changed sides is wrong in its place.
    """

    def right(order: tuple[Seen, ...]) -> tuple[int, bool]:
        words = sum(
            (one.colour == thing.colour) + (one.shape == thing.shape)
            for one, thing in zip(order, asked, strict=True)
        )
        return words, place(order) == place(asked)

    return max(permutations(seen), key=right)
