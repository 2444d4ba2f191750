"""With one row a call, a picture's bits do not depend on other jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.engine.jobs import Rounds, job

if TYPE_CHECKING:
    from worker.engine.job import Job


def _jobs() -> list[Job]:
    kinds: list[dict[str, Any]] = [
        {}, {"sag_scale": 0.0}, {"guidance_scale": 1.0}, {"num_images_per_prompt": 2},
    ]  # fmt: skip
    return [
        job(
            id=f"t{number}",
            prompts=(f"a {'large red ' * number}star",),
            seeds=(number,),
            num_inference_steps=2,
            output_type="npy",
            **kind,
        )
        for number, kind in enumerate(kinds)
    ]


def test_together_a_picture_has_the_bits_that_it_has_alone(rounds: Rounds) -> None:
    """With `max_batch_rows` 1, four different jobs at once give the bits that each gives alone."""
    rounds = Rounds(model=rounds.runner.model, max_batch_rows=1)
    alone = [rounds.result(each) for each in _jobs()]
    futures = [rounds.submit(each) for each in _jobs()]
    rounds.run()
    for one, future in zip(alone, futures, strict=True):
        company = future.result(timeout=0)
        for mine, theirs in zip(one.images, company.images, strict=True):
            assert np.array_equal(mine.pixels, theirs.pixels)
