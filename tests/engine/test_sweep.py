"""200 requests drawn at random, each in company: equal to the same request made alone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import oracle
from tests.engine.jobs import CLOSE, Rounds, assert_close, job, latents_of

if TYPE_CHECKING:
    from worker.engine.job import Job

#: Requests of one batch, and batches: 200 in all.
TOGETHER, BATCHES = 25, 8
SIDES = (16, 24, 32, 40, 48, 64, 72)
PROMPTS = (
    "a large red star on a blue background",
    "a small green ring on a black background",
    "a cyan cross on a white background",
    "a yellow square to the left of a red circle",
)


def draw(dice: random.Random) -> Job:
    """One request; small sizes and few steps keep the oracles quick."""
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
    return job(**changes)


@pytest.mark.parametrize("number", range(BATCHES))
def test_company_changes_nothing(rounds: Rounds, number: int) -> None:
    """Whatever else is in its calls, a request gives the latents that it gives alone upstream.

    Sizes, steps, scales, samplers, images, arrivals and the rows of a call are drawn at random.
    Where upstream can't or is wrong, the oracle is the plain loop that test_oracle.py checks.
    """
    dice = random.Random(number)
    company = Rounds(model=rounds.runner.model, max_batch_rows=dice.choice((6, 16, 40)))
    wanted = [draw(dice) for _ in range(TOGETHER)]
    futures = []
    for each in wanted:
        futures.append(company.submit(each))
        for _ in range(dice.choice((0, 0, 1, 3, 8))):
            company.batch.step()
    company.run()
    for each, future in zip(wanted, futures, strict=True):
        upstream = each.scheduler in oracle.UPSTREAM and min(each.height, each.width) > 16
        expected = (oracle.upstream if upstream else oracle.alone)(rounds.pipe, each)
        assert_close(latents_of(future.result(timeout=0)), expected, CLOSE)
