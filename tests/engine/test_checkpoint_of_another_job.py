"""A checkpoint of another job, model or version is ignored with a warning."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch

from tests.engine.attempts import assert_same, checkpoints, new_batch, resumed
from tests.engine.checkpoint_cases import WANTED, Case, assert_ignored

if TYPE_CHECKING:
    from tests.engine.jobs import Rounds


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"scheduler": "ddim"}, "its scheduler is 'unipc', not 'ddim'"),
        ({"num_inference_steps": 5}, "its steps is 3, not 5"),
        ({"seeds": (6,)}, "its seeds is [5, 6], not [6, 7]"),
        ({"num_images_per_prompt": 1}, "its seeds is [5, 6], not [5]"),
        ({"width": 48}, "its shape is [1, 4, 8, 8], not [1, 4, 8, 12]"),
        ({"prompts": ("a blue circle",)}, "its request is"),
        ({"negative_prompts": ("a blue circle",)}, "its request is"),
        ({"sag_scale": 0.5}, "its request is"),
    ],
)
def test_of_another_job(
    case: Case, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], why: str
) -> None:
    """A job does not resume from the checkpoint of a job for another picture."""
    wanted = dataclasses.replace(WANTED, **changes)
    assert_ignored(case.rounds, wanted, case.left, why, caplog)


def test_what_does_not_change_the_latents(case: Case) -> None:
    """A second attempt may report and encode differently."""
    wanted = dataclasses.replace(
        WANTED,
        id="b", priority=0, checkpoint_every=3, preview_every=1, max_images=2, max_side_px=2048,
    )  # fmt: skip
    again = resumed(new_batch(case.rounds), wanted, case.left)
    assert again.resumed_from_step == 2
    assert_same(again, case.whole)


@pytest.mark.parametrize("module", [torch, diffusers])
def test_of_another_version(
    case: Case, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """A checkpoint of another version of torch or diffusers is not used."""
    name, here = module.__name__, str(module.__version__)
    with monkeypatch.context() as patched:
        patched.setattr(module, "__version__", "1.2.3")
        _, left = checkpoints(case.rounds, WANTED)
    assert_ignored(case.rounds, WANTED, left[2], f"its {name} is '1.2.3', not {here!r}", caplog)


def test_of_another_precision(case: Case, half: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint of a model in another precision is not used."""
    _, left = checkpoints(half, WANTED)
    assert_ignored(case.rounds, WANTED, left[2], "its dtype is 'torch.bfloat16'", caplog)


def test_of_other_noise_levels(
    case: Case, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of a model with another noise schedule is not used."""
    own = case.rounds.pipe.scheduler
    other = type(own).from_config(own.config, beta_end=0.012)
    with monkeypatch.context() as patched:
        patched.setattr(case.rounds.pipe, "scheduler", other)
        _, left = checkpoints(case.rounds, WANTED)
    assert_ignored(case.rounds, WANTED, left[2], "its sampler's settings is", caplog)
