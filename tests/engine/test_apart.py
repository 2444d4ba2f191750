"""With one row a call, a picture's bits do not depend on other jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.engine.jobs import Rounds, job

if TYPE_CHECKING:
    import pytest
    import torch

    from worker.engine.jobs.job import Job


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
        together = future.result(timeout=0)
        for mine, theirs in zip(one.images, together.images, strict=True):
            assert np.array_equal(mine.pixels, theirs.pixels)


def test_with_one_row_prompts_are_encoded_job_by_job(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `max_batch_rows` 1 no call of the text encoder has prompts of two jobs."""
    texts: list[int] = []
    usual = rounds.pipe.text_encoder.forward

    def forward(ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        texts.append(len(ids))
        return usual(ids, *args, **kwargs)

    monkeypatch.setattr(rounds.pipe.text_encoder, "forward", forward)
    for max_batch_rows, expected in ((1, [2, 2]), (8, [3])):
        texts.clear()
        own = Rounds(model=rounds.runner.model, max_batch_rows=max_batch_rows)
        for each in _jobs()[:2]:
            own.submit(replace(each, num_inference_steps=1))
        own.run()
        assert texts == expected
