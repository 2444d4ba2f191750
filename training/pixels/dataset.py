"""The pictures that the pixel model is trained on."""

from __future__ import annotations

import multiprocessing
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from training.pixels.classes import CLASSES
from training.shapes import COLOURS, jittered, render, single
from training.sight import look

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from training.shapes import Scene

SIDE_PX = 32
#: Half the width of a shape, in the pixels of `training.shapes`, which are half as large.
RADIUS_PX = (15.0, 23.0)
PICTURES = 32_000
_CHUNK = 500
_FILE = "pictures.npz"


@dataclass(frozen=True)
class Dataset:
    """Pictures, (count, 3, 32, 32) in -1 … 1, and their labels (count,)."""

    pixels: torch.Tensor
    labels: torch.Tensor


def load_or_draw(work: Path, seed: int) -> Dataset:
    """The dataset of `seed`, drawn into `work` the first time (a minute on two cores)."""
    file = work / _FILE
    if not file.exists():
        with multiprocessing.get_context("spawn").Pool() as pool:
            jobs = [(seed, start) for start in range(0, PICTURES, _CHUNK)]
            chunks = pool.map(_draw_chunk, jobs, chunksize=1)
        pixels, labels = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        np.savez(file, pixels=pixels, labels=labels)
    with np.load(file) as drawn:
        return Dataset(as_tensor(drawn["pixels"]), torch.from_numpy(drawn["labels"]))


def as_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in -1 … 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw(rng: random.Random, label: int) -> Image.Image:
    """A random picture of a class: background, size and place are drawn, too."""
    colour, shape = CLASSES[label]
    background = rng.choice([each for each in sorted(COLOURS) if each != colour])
    scene = _sized(single(colour, shape, background), rng.uniform(*RADIUS_PX))
    return render(jittered(scene, rng)).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)


def _sized(scene: Scene, radius_px: float) -> Scene:
    (thing,) = scene.things
    return replace(scene, things=(replace(thing, radius_px=radius_px),))


def is_right(picture: Image.Image, label: int) -> bool:
    """Whether a picture shows one shape, of the class's kind and colour, as `sight` reads it."""
    twice = (2 * SIDE_PX, 2 * SIDE_PX)
    things = look(picture.convert("RGB").resize(twice, Image.Resampling.BICUBIC)).things
    return [(each.colour, each.shape) for each in things] == [CLASSES[label]]


def _draw_chunk(job: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    seed, start = job
    rng = random.Random(f"pixels/{seed}/{start}")
    labels = [(start + row) % len(CLASSES) for row in range(_CHUNK)]
    pixels = np.stack([np.asarray(draw(rng, label)) for label in labels])
    return pixels, np.array(labels)
