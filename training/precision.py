"""`python -m training.precision`: the card's 200 prompts, by the engine in each precision.

Compares float32 with the UNet in bfloat16, as a processor with AMX runs it; on others it is slow.
Some minutes on two cores. Prints a Markdown table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from training.evaluate import PROMPTS, PROMPTS_SEED, TUNING_SAG_SCALES, held_out_scenes
from training.judge import judge
from training.sampling import Sampling
from training.shares import of_verdicts
from worker import devices
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine.engine import Engine
from worker.engine.jobs.job import Job
from worker.job_control import Control

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from training.shapes import Scene

GUIDANCE_SCALE = 3.0
#: Settings of `dtype`; `auto` is the UNet in bfloat16 here.
DTYPES = ("float32", "auto")


def main() -> None:
    """Draw, judge and print."""
    scenes = held_out_scenes(PROMPTS, PROMPTS_SEED)
    print("| `sag_scale` | right in float32, % | in bfloat16, % | mean difference, of 255 |")
    print("| --- | --- | --- | --- |")
    with mock.patch.object(devices, "has_fast_bfloat16", return_value=True):
        engines = [_engine(dtype) for dtype in DTYPES]
        for sag_scale in TUNING_SAG_SCALES:
            drawn = [_draw(each, scenes, Sampling(GUIDANCE_SCALE, sag_scale)) for each in engines]
            right = [_right(pictures, scenes) for pictures in drawn]
            apart = np.mean([_apart(*pair) for pair in zip(*drawn, strict=True)])
            print(f"| {sag_scale} | {right[0]:.1f} | {right[1]:.1f} | {apart:.2f} |", flush=True)
    for engine in engines:
        engine.close()


def _engine(dtype: Any) -> Engine:  # noqa: ANN401  # one of `DTYPES`
    spec = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, dtype=dtype)
    return Engine({"default": spec}, "cpu", "none", max_batch_rows=16)


def _draw(engine: Engine, scenes: Sequence[Scene], sampling: Sampling) -> list[Image.Image]:
    """A picture for each scene, from the noise of consecutive seeds."""
    futures = [
        engine.submit(_job(scene.caption, sampling.seed + number, sampling), Control())
        for number, scene in enumerate(scenes)
    ]
    return [future.result().images[0].pixels for future in futures]


def _job(prompt: str, seed: int, sampling: Sampling) -> Job:
    return Job(
        id=str(seed),
        model="default",
        prompts=(prompt,),
        negative_prompts=(),
        height=sampling.side_px,
        width=sampling.side_px,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        sag_scale=sampling.sag_scale,
        num_images_per_prompt=1,
        eta=0.0,
        seeds=(seed,),
        max_images=1,
        max_side_px=sampling.side_px,
        scheduler=None,
        output_type="png",
    )


def _right(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> float:
    """Share of pictures with everything right, in per cent."""
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    return 100 * of_verdicts(verdicts)["everything"].share


def _apart(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of the values."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


if __name__ == "__main__":
    main()
