"""Checkpoints of every family and feature: a job resumes to the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import diffusers
import pytest

from tests.engine.attempts import assert_same, checkpoints, new_batch, resumed
from tests.engine.jobs import Rounds, job
from tests.engine.pictures import masked, picture
from tests.engine.small_models import save_inpainting, save_pixels, save_xl, spec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FEATURES: dict[str, dict[str, Any]] = {
    "text": {},
    "picture": picture(32, 48),
    "mask": masked(32, 48),
    "parameters of SAG": {
        "sag_blur_sigma": 2.0, "sag_mask_threshold": 0.9, "sag_start": 0.2, "sag_stop": 0.7,
        "guidance_rescale": 0.5,
    },
}  # fmt: skip
#: Of pixels; a sampler takes the learned variance of the second.
PIXELS: dict[str, dict[str, Any]] = {
    "pixels": {"class_labels": (1,)},
    "learned variance": {"class_labels": (1,), "sag_scale": 0.0},
}
CASES = [
    *(("plain", feature) for feature in FEATURES),
    *(("xl", feature) for feature in FEATURES),
    ("inpainting", "mask"),
]


@pytest.fixture(scope="module")
def models(rounds: Rounds, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Rounds]:
    """One model of each kind."""
    return {
        "plain": rounds,
        "xl": Rounds(spec(save_xl(tmp_path_factory.mktemp("xl")))),
        "inpainting": Rounds(spec(save_inpainting(tmp_path_factory.mktemp("inpainting")))),
        "pixels": _pixels(tmp_path_factory.mktemp("pixels")),
    }


def _pixels(folder: Path) -> Rounds:
    learned = diffusers.DDPMScheduler(variance_type="learned_range", beta_end=0.012)
    path = save_pixels(folder, scheduler=learned, out_channels=6, num_class_embeds=3)
    return Rounds(spec(path).model_copy(update={"null_class": 2}))


@pytest.mark.parametrize("scheduler", ["euler_a", "heun", "dpmpp_2m"])
@pytest.mark.parametrize(("kind", "feature"), CASES)
def test_a_job_resumes(
    models: Mapping[str, Rounds], kind: str, feature: str, scheduler: str
) -> None:
    """A job resumes from its first and its last checkpoint as if it had not been interrupted."""
    size = {"height": 32, "width": 48, "num_inference_steps": 8}
    wanted = job(**(size | FEATURES[feature]), scheduler=scheduler, num_images_per_prompt=2)
    whole, left = checkpoints(models[kind], wanted)
    assert len(left) >= 3
    for step in (min(left), max(left)):
        again = resumed(new_batch(models[kind]), wanted, left[step])
        assert again.resumed_from_step == step
        assert_same(again, whole)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler_a", "dpmpp_2m"])
@pytest.mark.parametrize("feature", PIXELS)
def test_a_job_of_pixels_resumes(
    models: Mapping[str, Rounds], feature: str, scheduler: str
) -> None:
    """The same for pixels, also where a step takes the variance that the UNet has learned."""
    wanted = job(
        prompts=(), scheduler=scheduler, num_inference_steps=8, num_images_per_prompt=2,
        **PIXELS[feature],
    )  # fmt: skip
    whole, left = checkpoints(models["pixels"], wanted)
    for step in (min(left), max(left)):
        again = resumed(new_batch(models["pixels"]), wanted, left[step])
        assert again.resumed_from_step == step
        assert_same(again, whole)
    other = replace(wanted, class_labels=(0,))
    again = resumed(new_batch(models["pixels"]), other, left[min(left)])
    assert again.resumed_from_step is None


def test_another_picture_has_no_use_for_a_checkpoint(models: Mapping[str, Rounds]) -> None:
    """A checkpoint is used only for a job with the inputs on which its latents depend."""
    wanted = job(**masked(32, 48), scheduler="ddim", num_inference_steps=8)
    _, left = checkpoints(models["plain"], wanted)
    for changes in (
        {"image": picture(32, 48, seed=9)["image"]},
        {"strength": 0.9},
        {"sag_blur_sigma": 2.0},
        {"mask_image": b"\xff" * (32 * 48)},
    ):
        other = job(**(masked(32, 48) | changes), scheduler="ddim", num_inference_steps=8)
        again = resumed(new_batch(models["plain"]), other, left[min(left)])
        assert again.resumed_from_step is None
