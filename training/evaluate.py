"""How often the exported model draws what was asked, with and without self-attention guidance.

Owns `evaluation.json`. Every prompt is one that training never saw, and the guidance scale is
chosen on other prompts than those that the shares are counted on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from training.export import fingerprint
from training.judge import Verdict, judge
from training.limits import Limit, measure
from training.sampling import Sampling, draw, load
from training.shapes import draw_scene
from training.shares import Share, of_verdicts, share

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from diffusers import StableDiffusionSAGPipeline

    from training.shapes import Scene

FILE = "evaluation.json"
PROMPTS, PROMPTS_SEED = 200, 1
TUNING_PROMPTS, TUNING_SEED = 75, 2
GUIDANCE_SCALES = (2.0, 3.0, 4.0, 5.0)
SAG_SCALES = (0.0, 0.5, 0.75, 1.0)
#: The guidance scale is tuned with and without it, so that neither is favoured.
TUNING_SAG_SCALES = (0.0, 0.75)


@dataclass(frozen=True)
class Tried:
    """A guidance scale on the tuning prompts, all of `TUNING_SAG_SCALES` together."""

    guidance_scale: float
    everything: Share


@dataclass(frozen=True)
class Result:
    """The shares at one `sag_scale`: each attribute, everything, and everything by kind."""

    sag_scale: float
    shares: dict[str, Share]
    one_shape: Share
    two_shapes: Share


@dataclass(frozen=True)
class Evaluation:
    """All that was measured on one export, known by the SHA-256 of its weights."""

    weights_sha256: str
    steps: int
    #: The best on the tuning prompts: the model's default.
    guidance_scale: float
    tuning: list[Tried]
    results: list[Result]
    limits: list[Limit]


FORMAT = TypeAdapter(Evaluation)


def evaluate(out: Path) -> None:
    """Measure the model in `out` and write `evaluation.json` there, unless it is of these weights.

    About a quarter of an hour on two cores.
    """
    weights = fingerprint(out)
    file = out / FILE
    if file.exists() and read(out).weights_sha256 == weights:
        return
    pipeline = load(out)
    scenes = held_out_scenes(PROMPTS, PROMPTS_SEED)
    tuning = _tune(pipeline, {scene.caption for scene in scenes})
    best = max(tuning, key=lambda tried: (tried.everything.right, -tried.guidance_scale))
    results = [_result(pipeline, scenes, best.guidance_scale, sag) for sag in SAG_SCALES]
    limits = measure(pipeline, Sampling(best.guidance_scale, sag_scale=0.0))
    steps = Sampling(best.guidance_scale, sag_scale=0.0).steps
    evaluation = Evaluation(weights, steps, best.guidance_scale, tuning, results, limits)
    file.write_bytes(FORMAT.dump_json(evaluation, indent=2) + b"\n")


def read(out: Path) -> Evaluation:
    """The evaluation that `out` holds; raises FileNotFoundError when there is none."""
    return FORMAT.validate_json((out / FILE).read_bytes())


def held_out_scenes(
    count: int, seed: int, without: frozenset[str] | set[str] = frozenset()
) -> list[Scene]:
    """Distinct scenes that training never saw, none with a caption in `without`."""
    rng = random.Random(f"evaluation/{seed}")
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = draw_scene(rng, held_out=True)
        if scene.caption not in without:
            scenes[scene.caption] = scene
    return list(scenes.values())


def verdicts(
    pipeline: StableDiffusionSAGPipeline, scenes: Sequence[Scene], sampling: Sampling
) -> list[Verdict]:
    """Draw a picture for each scene and judge it."""
    pictures = draw(pipeline, [scene.caption for scene in scenes], sampling)
    return [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]


def _tune(pipeline: StableDiffusionSAGPipeline, without: set[str]) -> list[Tried]:
    scenes = held_out_scenes(TUNING_PROMPTS, TUNING_SEED, without)
    tried = []
    for guidance_scale in GUIDANCE_SCALES:
        judged = [
            verdict.everything
            for sag_scale in TUNING_SAG_SCALES
            for verdict in verdicts(pipeline, scenes, Sampling(guidance_scale, sag_scale))
        ]
        tried.append(Tried(guidance_scale, share(sum(judged), len(judged))))
        print("tuning", tried[-1], flush=True)
    return tried


def _result(
    pipeline: StableDiffusionSAGPipeline,
    scenes: list[Scene],
    guidance_scale: float,
    sag_scale: float,
) -> Result:
    judged = verdicts(pipeline, scenes, Sampling(guidance_scale, sag_scale))
    ones = [v.everything for v, s in zip(judged, scenes, strict=True) if len(s.things) == 1]
    twos = [v.everything for v, s in zip(judged, scenes, strict=True) if len(s.things) == 2]
    result = Result(
        sag_scale,
        of_verdicts(judged),
        one_shape=share(sum(ones), len(ones)),
        two_shapes=share(sum(twos), len(twos)),
    )
    print("evaluation", result, flush=True)
    return result
