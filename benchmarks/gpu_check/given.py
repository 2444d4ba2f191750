"""The tasks that the parts give to every side, at Stable Diffusion 1.5's size."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from benchmarks import tasks

if TYPE_CHECKING:
    from benchmarks.gpu_check.setting import Setting
    from benchmarks.tasks import Task

#: Of classifier-free guidance, as Stable Diffusion 1.5's users have it. Above 1: three rows a step.
GUIDANCE_SCALE = 7.5
#: Rows of one picture's step: without and with the prompt, and the degraded one.
ROWS_A_STEP = 3


def make(setting: Setting, count: int, steps: int, size_px: int | None = None) -> list[Task]:
    """`count` tasks of different seeds."""
    options = argparse.Namespace(
        steps=steps,
        guidance_scale=GUIDANCE_SCALE,
        sd15=True,
        size_px=size_px or setting.size_px,
    )
    return tasks.make(count, options)
