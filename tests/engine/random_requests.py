"""Requests drawn at random, and the latents that each gives alone. Knows no pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers

from tests.engine import oracle
from tests.engine.jobs import job

if TYPE_CHECKING:
    import random

    import torch

    from worker.engine.jobs.job import Job

#: A difference may be so many times the oracle's own rounding; the largest seen was 3.0.
ROUNDINGS = 6
#: A column sum so near to the mask's threshold, or as near as the latents round, may fall on either
#: side of it: then a cell is blurred or not, which is more than rounding. Sums round to 2.4e-7.
NEAR_THRESHOLD = 1e-5
SIDES = (16, 24, 32, 40, 48, 64, 72)
PROMPTS = (
    "a large red star on a blue background",
    "a small green ring on a black background",
    "a cyan cross on a white background",
    "a yellow square to the left of a red circle",
)


def draw(dice: random.Random, *, brief: bool) -> Job:
    """One request; a brief one has one image, 4 steps and sides of up to 40 px."""
    prompts = dice.sample(PROMPTS, dice.choice((1, 1, 1, 2)))
    images = dice.choice((1, 1, 2))
    scheduler = dice.choice(sorted(oracle.SCHEDULERS))
    changes: dict[str, Any] = {
        "prompts": tuple(prompts),
        "negative_prompts": dice.choice(((), ("a blue ring",))),
        "num_images_per_prompt": images,
        "height": dice.choice(SIDES),
        "width": dice.choice(SIDES),
        "num_inference_steps": dice.randint(4, 9),
        "guidance_scale": dice.choice((1.0, 2.0, 3.0, 7.5)),
        "sag_scale": dice.choice((0.0, 0.5, 0.75, 1.0)),
        "eta": dice.choice((0.0, 0.7)) if scheduler in ("ddim", "tcd") else 0.0,
        "seeds": (dice.randrange(2**32),),
        "scheduler": scheduler,
    }
    if brief:
        sides = {side: min(changes[side], 40) for side in ("height", "width")}
        small = {"num_images_per_prompt": 1, "num_inference_steps": 4, **sides}
        changes |= {"prompts": tuple(prompts[:1]), **small}
    return job(**changes)


def under_sd15_noise(pipe: Any) -> None:
    """Give a pipeline of the bundled model the noise schedule of Stable Diffusion 1.5.

    Its own begins at alpha = 0.006, which magnifies the first rounding by 160.
    """
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, beta_end=0.012, timestep_spacing="leading"
    )


def expected(pipe: Any, wanted: Job) -> torch.Tensor:
    """Latents by upstream, or by the plain loop where upstream crashes or is wrong."""
    return (oracle.upstream if by_upstream(pipe, wanted) else oracle.alone)(pipe, wanted)


def by_upstream(pipe: Any, wanted: Job) -> bool:
    """Whether upstream is right for a request."""
    small = min(wanted.height or 64, wanted.width or 64) // pipe.vae_scale_factor <= 4
    return wanted.scheduler in oracle.UPSTREAM and not small
