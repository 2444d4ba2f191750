"""How often the exported pixel-space model draws the class asked for, with and without guidance.

Owns `evaluation.json`. The pictures are the engine's, as a worker makes them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from training.export import fingerprint
from training.pixels.classes import CLASSES, NULL_CLASS
from training.pixels.dataset import SIDE_PX, draw, is_right
from training.shares import Share, share
from worker.config.models import ModelSpec
from worker.engine.engine import Engine
from worker.engine.jobs.job import Job
from worker.job_control import Control

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "evaluation.json"
STEPS = 25
#: Pictures of each class; the same noise for all settings.
EACH = 6
#: Drawn pictures that the Fréchet distance compares with.
DRAWN = 6_000
#: Side of the pictures whose 192 numbers are the features of the Fréchet distance.
FEATURES_PX = 8


@dataclass(frozen=True)
class Guidance:
    """Parameters of a set of pictures."""

    guidance_scale: float
    sag_scale: float
    sag_blur_sigma: float = 1.0


#: Tried: each guidance alone, and both.
TRIED = (
    Guidance(1.0, 0.0),
    Guidance(1.0, 0.5),
    Guidance(1.0, 1.0),
    Guidance(1.0, 1.0, 3.0),
    Guidance(2.0, 0.0),
    Guidance(2.0, 1.0),
)


@dataclass(frozen=True)
class Result:
    """One set of pictures: how many show their class, and how far all are from drawn ones."""

    guidance: Guidance
    right: Share
    frechet: float


@dataclass(frozen=True)
class Evaluation:
    """All that was measured on one export, known by the SHA-256 of its weights."""

    weights_sha256: str
    steps: int
    #: Drawn pictures that are read as their class, and the distance between two sets of them.
    drawn: Result
    results: list[Result]


FORMAT = TypeAdapter(Evaluation)


def evaluate(out: Path) -> None:
    """Measure the model in `out` and write `evaluation.json` there, unless it is of these weights.

    Some minutes on two cores.
    """
    weights, file = fingerprint(out), out / FILE
    if file.exists() and read(out).weights_sha256 == weights:
        return
    labels = [label for label in range(len(CLASSES)) for _ in range(EACH)]
    known = features([_drawn(f"known/{n}", n % len(CLASSES)) for n in range(DRAWN)])
    drawn = [_drawn(f"other/{n}", label) for n, label in enumerate(labels)]
    results = []
    with PixelEngine(out) as engine:
        for guidance in TRIED:
            pictures = engine.pictures(labels, guidance)
            results.append(_result(guidance, pictures, labels, known))
            print("evaluation", results[-1], flush=True)
    of_drawn = _result(Guidance(0.0, 0.0), drawn, labels, known)
    evaluation = Evaluation(weights, STEPS, of_drawn, results)
    file.write_bytes(FORMAT.dump_json(evaluation, indent=2) + b"\n")


def read(out: Path) -> Evaluation:
    """The evaluation that `out` holds; raises FileNotFoundError when there is none."""
    return FORMAT.validate_json((out / FILE).read_bytes())


class PixelEngine:
    """The engine with one exported model, in float32."""

    def __init__(self, out: Path) -> None:
        spec = ModelSpec(
            path=str(out), safety_checker=False, dtype="float32", null_class=NULL_CLASS
        )
        self._engine = Engine({"pixels": spec}, "cpu", "none", max_batch_rows=32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def pictures(self, labels: Sequence[int], guidance: Guidance) -> list[Image.Image]:
        """A picture of each class; the n-th starts from the noise of seed n."""
        jobs = [_job(label, seed, guidance) for seed, label in enumerate(labels)]
        futures = [self._engine.submit(job, Control()) for job in jobs]
        return [future.result().images[0].pixels for future in futures]


def _job(label: int, seed: int, guidance: Guidance) -> Job:
    return Job(
        id=str(seed),
        model="pixels",
        prompts=(),
        negative_prompts=(),
        class_labels=(label,),
        height=None,
        width=None,
        num_inference_steps=STEPS,
        guidance_scale=guidance.guidance_scale,
        sag_scale=guidance.sag_scale,
        sag_blur_sigma=guidance.sag_blur_sigma,
        num_images_per_prompt=1,
        eta=0.0,
        seeds=(seed,),
        max_images=1,
        max_side_px=SIDE_PX,
        scheduler=None,
        output_type="png",
    )


def _drawn(seed: str, label: int) -> Image.Image:
    return draw(random.Random(f"evaluation/{seed}"), label)


def _result(
    guidance: Guidance,
    pictures: Sequence[Image.Image],
    labels: Sequence[int],
    known: NDArray[np.float64],
) -> Result:
    right = sum(is_right(*each) for each in zip(pictures, labels, strict=True))
    return Result(guidance, share(right, len(labels)), round(frechet(features(pictures), known), 4))


def features(pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
    """The numbers of each picture reduced to 8 x 8, (pictures, 192), in 0 … 1."""
    size = (FEATURES_PX, FEATURES_PX)
    small = [each.convert("RGB").resize(size, Image.Resampling.BOX) for each in pictures]
    return np.stack([np.asarray(each, np.float64).ravel() / 255 for each in small])


def frechet(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Fréchet distance of the normal distributions with the features' means and covariances.

    As FID (Heusel et al. 2017, arXiv 1706.08500), whose features are those of a network.
    """
    shift = one.mean(0) - other.mean(0)
    covariances = [np.cov(each, rowvar=False) for each in (one, other)]
    product = np.linalg.eigvals(covariances[0] @ covariances[1])
    root = np.sqrt(product.real.clip(min=0)).sum()
    spread = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root
    return float(shift @ shift + spread)
