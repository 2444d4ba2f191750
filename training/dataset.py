"""The training pictures, drawn once in all processes and kept in the work folder."""

from __future__ import annotations

import json
import multiprocessing
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.shapes import SIDE_PX, draw_scene, jittered, render

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PICTURES = 32_000
CHUNK = 500
CAPTIONS_FILE = "captions.json"


@dataclass(frozen=True)
class Dataset:
    """Captions and pictures, as uint8 of shape (count, 64, 64, 3)."""

    captions: list[str]
    pixels: NDArray[np.uint8]


def load_or_draw(work: Path, seed: int) -> Dataset:
    """The dataset of `seed`, drawn into `work` the first time (a minute on two cores)."""
    pixels_file, captions_file = work / "pixels.npy", work / CAPTIONS_FILE
    if not captions_file.exists():
        # Not forked: a process with threads that is forked may hang, as that of the tests did.
        with multiprocessing.get_context("spawn").Pool() as pool:
            jobs = [(seed, start, CHUNK) for start in range(0, PICTURES, CHUNK)]
            chunks = pool.map(_draw_chunk, jobs, chunksize=1)
        np.save(pixels_file, np.concatenate([pixels for _, pixels in chunks]))
        drawn = [caption for chunk, _ in chunks for caption in chunk]
        captions_file.write_text(json.dumps(drawn))
    return Dataset(captions(work), np.load(pixels_file, mmap_mode="r"))


def captions(work: Path) -> list[str]:
    """The captions that were drawn into `work`, in the order of the pictures."""
    found: list[str] = json.loads((work / CAPTIONS_FILE).read_text())
    return found


def _draw_chunk(job: tuple[int, int, int]) -> tuple[list[str], NDArray[np.uint8]]:
    seed, start, count = job
    rng = random.Random(f"{seed}/{start}")
    scenes = [draw_scene(rng, held_out=False) for _ in range(count)]
    pixels = np.empty((count, SIDE_PX, SIDE_PX, 3), np.uint8)
    for row, scene in enumerate(scenes):
        pixels[row] = np.asarray(render(jittered(scene, rng)))
    return [scene.caption for scene in scenes], pixels
