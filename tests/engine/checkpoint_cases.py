"""A job, its checkpoint, and what must happen to a file that is no checkpoint of it."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import torch

from tests.engine.attempts import small

if TYPE_CHECKING:
    import pytest

    from tests.engine.jobs import Rounds
    from worker.engine.image_state import ImageState
    from worker.engine.job import Job, JobResult

#: Its scheduler keeps a list of outputs, a sample, and numbers; two images.
WANTED = small(num_inference_steps=3, scheduler="unipc", num_images_per_prompt=2)


@dataclasses.dataclass(frozen=True)
class Case:
    """A job, its checkpoint of step 2, and its undisturbed result."""

    rounds: Rounds
    left: bytes
    whole: JobResult
    #: New images, which nothing may change.
    fresh: list[ImageState]


def assert_warned(caplog: pytest.LogCaptureFixture, why: str) -> None:
    """One warning, on one line, that says why."""
    warned = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert why in warned[0]
    assert "\n" not in warned[0]
    assert len(warned[0]) < 400


def assert_ignored(
    rounds: Rounds, wanted: Job, left: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning that says why, and the images of a new job."""
    caplog.clear()
    runner = rounds.runner
    new = runner.encode([runner.check(wanted)])[0]
    images = runner.encode([runner.check(dataclasses.replace(wanted, checkpoint=left))])[0]
    assert_warned(caplog, why)
    for ours, theirs in zip(images, new, strict=True):
        assert ours.evaluations == ours.steps == 0
        assert torch.equal(ours.latents, theirs.latents)
        assert torch.equal(ours.generator.get_state(), theirs.generator.get_state())
        assert getattr(ours.sampler.scheduler, "step_index", None) is None
