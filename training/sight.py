"""What a 64 px picture shows, read off its pixels: the background and the shapes on it.

Owns segmentation and shape fitting. Must not know what was asked for, and uses no network.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.shapes import COLOURS, OVERSAMPLING, SHAPES, SIDE_PX, Thing, stencil

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

NAMES = tuple(COLOURS)
PALETTE = np.array([COLOURS[name] for name in NAMES], np.float64)
#: Width of the frame whose median colour is the background; every shape stays a pixel off the edge.
FRAME_PX = 2
#: A colour counts, and so does a patch of it, from this many pixels whose 3 x 3 surroundings are
#: all of that colour. The mixed colours along an edge never have one.
CORE_PIXELS = 4
#: How far beyond its patch a shape's soft edge may reach, in pixels.
EDGE_PX = 2
#: Below this overlap (intersection over union) with the best of the six shapes it is none of them.
#: Drawn pictures stay above 0.9; the two most alike, circle and square, overlap by 0.81.
LEAST_OVERLAP = 0.7


@dataclass(frozen=True)
class Seen:
    """A patch of one colour: the shape that fits it best, or None, and where, in pixels."""

    colour: str
    shape: str | None
    x_px: float
    y_px: float
    radius_px: float
    overlap: float


@dataclass(frozen=True)
class View:
    """All that a picture shows; a picture of one colour shows no things."""

    background: str
    things: tuple[Seen, ...]


def look(picture: Image.Image) -> View:
    """Read a picture of `SIDE_PX` square, RGB; raises ValueError for any other size."""
    if picture.size != (SIDE_PX, SIDE_PX):
        message = f"a picture of {SIDE_PX} x {SIDE_PX} px is needed, not {picture.size}"
        raise ValueError(message)
    pixels = np.asarray(picture.convert("RGB"), np.float64)
    inner = np.zeros((SIDE_PX, SIDE_PX), bool)
    inner[FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX] = True
    ground: Floats = np.median(pixels[~inner], axis=0)
    background = int(_nearest(ground[None])[0])
    patches = _patches(pixels, background)
    things = tuple(
        _fit(colour, _coverage(pixels, ground, patch, _others(patches, row)))
        for row, (colour, patch) in enumerate(patches)
    )
    return View(NAMES[background], things)


def _nearest(pixels: Floats, among: NDArray[np.intp] | None = None) -> NDArray[np.intp]:
    """Index of the nearest palette colour of each pixel, of all ten or of those `among`."""
    rows = np.arange(len(PALETTE)) if among is None else among
    distances = np.square(pixels[..., None, :] - PALETTE[rows]).sum(axis=-1)
    nearest: NDArray[np.intp] = rows[distances.argmin(axis=-1)]
    return nearest


def _patches(pixels: Floats, background: int) -> list[tuple[str, Mask]]:
    """Connected patches of one colour each, the background and the mixed edges left out."""
    labels = _nearest(pixels)
    present = [
        colour
        for colour in range(len(NAMES))
        if colour == background or _core(labels == colour).sum() >= CORE_PIXELS
    ]
    labels = _nearest(pixels, np.array(present))
    return [
        (NAMES[colour], patch)
        for colour in present
        if colour != background
        for patch in _connected(labels == colour)
        if _core(patch).sum() >= CORE_PIXELS
    ]


def _shifted(mask: Mask) -> NDArray[np.bool_]:
    """The nine one-pixel shifts of a mask, (9, h, w), with False beyond the border."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    return np.stack([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])


def _core(mask: Mask) -> Mask:
    return np.asarray(_shifted(mask).all(axis=0))


def _grown(mask: Mask, pixels: int) -> Mask:
    for _ in range(pixels):
        mask = np.asarray(_shifted(mask).any(axis=0))
    return mask


def _connected(mask: Mask) -> list[Mask]:
    """The connected parts of a mask, neighbours by a side or a corner, in reading order."""
    parts = []
    left = mask.copy()
    while left.any():
        part = np.zeros_like(mask)
        part.flat[left.argmax()] = True
        while (grown := _grown(part, 1) & mask).sum() > part.sum():
            part = grown
        parts.append(part)
        left &= ~part
    return parts


def _others(patches: list[tuple[str, Mask]], row: int) -> Mask:
    others = [patch for number, (_, patch) in enumerate(patches) if number != row]
    return np.asarray(np.any([np.zeros((SIDE_PX, SIDE_PX), bool), *others], axis=0))


def _coverage(pixels: Floats, ground: Floats, patch: Mask, others: Mask) -> Floats:
    """Share of each pixel that a patch covers, 0 to 1: edges are mixed with the background."""
    colour = np.median(pixels[_core(patch)], axis=0)
    line = colour - ground
    share = ((pixels - ground) @ line) / max(float(line @ line), 1.0)
    region = _grown(patch, EDGE_PX) & ~others
    return np.where(region, share.clip(0.0, 1.0), 0.0)


def _fit(colour: str, coverage: Floats) -> Seen:
    """The best of the six shapes, each placed and sized by the coverage's area and centroid."""
    area = float(coverage.sum())
    middles = np.arange(SIDE_PX) + 0.5
    x_px, y_px = float(coverage.sum(0) @ middles / area), float(coverage.sum(1) @ middles / area)
    fits = []
    for shape in SHAPES:
        unit_area, unit_drop = _moments(shape)
        radius_px = math.sqrt(area / unit_area)
        thing = Thing(shape, colour, x_px, y_px - unit_drop * radius_px, radius_px)
        drawn = _drawn(thing)
        overlap = float(np.minimum(drawn, coverage).sum() / np.maximum(drawn, coverage).sum())
        fits.append((overlap, thing))
    overlap, best = max(fits, key=lambda fit: fit[0])
    shape_seen = best.shape if overlap >= LEAST_OVERLAP else None
    return Seen(colour, shape_seen, best.x_px, best.y_px, best.radius_px, overlap)


def _drawn(thing: Thing) -> Floats:
    """The stencil of a thing as shares of pixels, (64, 64)."""
    big = np.asarray(stencil(thing, SIDE_PX * OVERSAMPLING), np.float64) / 255
    fine = big.reshape(SIDE_PX, OVERSAMPLING, SIDE_PX, OVERSAMPLING)
    return np.asarray(fine.mean(axis=(1, 3)))


@functools.cache
def _moments(shape: str) -> tuple[float, float]:
    """Area over radius squared, and how far below its middle the centroid lies, in radii."""
    radius_px = 20.0
    drawn = _drawn(Thing(shape, "", SIDE_PX / 2, SIDE_PX / 2, radius_px))
    area = float(drawn.sum())
    centroid = float(drawn.sum(1) @ (np.arange(SIDE_PX) + 0.5)) / area
    return area / radius_px**2, (centroid - SIDE_PX / 2) / radius_px
