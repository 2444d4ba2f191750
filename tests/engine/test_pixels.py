"""Pixel-space models: class-conditional and unconditional pictures, by the engine and by loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch

from tests.engine import pixel_loop
from tests.engine.cases import chosen
from tests.engine.jobs import Rounds, assert_close, job, latents_of
from tests.engine.requests_of import SCHEDULERS
from tests.engine.small_models import save_pixels, spec
from worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from worker.engine.jobs.job import Job

CLASSES, NULL = 5, 5
#: Schedules in which no step magnifies a rounding.
_DDPM = {"beta_schedule": "linear", "beta_end": 0.012}


def pixels(**changes: Any) -> Job:
    """A job of one picture, without SAG and without classes unless `changes` say more."""
    return job(**({"prompts": (), "sag_scale": 0.0, "guidance_scale": 1.0} | changes))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Rounds]:
    """Unconditional, of classes with and without one for none, and with a learned variance."""

    def made(name: str, null_class: int | None = None, **options: Any) -> Rounds:
        found = spec(save_pixels(tmp_path_factory.mktemp(name), **options))
        return Rounds(found.model_copy(update={"null_class": null_class}))

    learned = diffusers.DDPMScheduler(variance_type="learned_range", **_DDPM)
    return {
        "plain": made("plain", scheduler=diffusers.DDPMScheduler(**_DDPM)),
        "ddim": made(
            "ddim", kind=diffusers.DDIMPipeline, scheduler=diffusers.DDIMScheduler(**_DDPM)
        ),
        "classes": made("classes", num_class_embeds=CLASSES),
        "guided": made(
            "guided",
            NULL,
            scheduler=diffusers.DDPMScheduler(**_DDPM),
            num_class_embeds=CLASSES + 1,
        ),
        "velocity": made(
            "velocity",
            NULL,
            scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", **_DDPM),
            num_class_embeds=CLASSES + 1,
        ),
        "learned": made(
            "learned", NULL, scheduler=learned, num_class_embeds=CLASSES + 1, out_channels=6
        ),
    }


@pytest.mark.parametrize("name", ["plain", "ddim"])
def test_without_guidance_it_is_diffusers_own_pipeline(
    models: Mapping[str, Rounds], name: str
) -> None:
    """A seed gives the picture of `DDPMPipeline` and `DDIMPipeline`, in the same bytes."""
    rounds, kind = models[name], {"plain": diffusers.DDPMPipeline, "ddim": diffusers.DDIMPipeline}
    theirs = kind[name](unet=rounds.pipe.unet, scheduler=rounds.pipe.scheduler)
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    expected = theirs(generator=generator, num_inference_steps=6).images[0]
    result = rounds.result(pixels(num_inference_steps=6, output_type="png"))
    assert result.images[0].pixels.tobytes() == expected.tobytes()
    assert (result.images[0].width, result.images[0].height) == expected.size


@pytest.mark.parametrize("scheduler", chosen(sorted(SCHEDULERS), ("ddim", "ddpm", "euler")))
def test_guidance_is_that_of_the_plain_loop(models: Mapping[str, Rounds], scheduler: str) -> None:
    """Classifier-free guidance and SAG by the paper's equations, whatever the sampler."""
    wanted = pixels(
        scheduler=scheduler, sag_scale=0.75, guidance_scale=2.0, class_labels=(3, 1),
        guidance_rescale=0.5,
        num_inference_steps=4, sag_blur_sigma=2.0,
    )  # fmt: skip
    found = latents_of(models["guided"].result(wanted))
    assert_close(found, pixel_loop.alone(models["guided"].pipe, wanted))


@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 3.0}, {"sag_scale": 1.0}])
def test_a_learned_variance_is_that_of_the_class(
    models: Mapping[str, Rounds], changes: dict[str, Any]
) -> None:
    """DDPM takes the variance that the UNet gives in the row with the class."""
    wanted = pixels(class_labels=(2,), num_inference_steps=5, **changes)
    found = latents_of(models["learned"].result(wanted))
    assert_close(found, pixel_loop.alone(models["learned"].pipe, wanted))


def test_a_velocity_is_guided_as_well(models: Mapping[str, Rounds]) -> None:
    """A model that predicts the velocity, as the bundled one, gets the same guidance."""
    wanted = pixels(class_labels=(2, 4), guidance_scale=2.0, sag_scale=1.0, num_inference_steps=4)
    found = latents_of(models["velocity"].result(wanted))
    assert_close(found, pixel_loop.alone(models["velocity"].pipe, wanted))


@pytest.mark.parametrize("layer", ["up_blocks.0.attentions.2", "down_blocks.1.attentions.0"])
def test_sag_reads_another_layer(tmp_path: Path, layer: str) -> None:
    """The authors' output blocks are named by `sag_layer`; a mid block may have no group norm."""
    more = {"layers_per_block": 2, "attn_norm_num_groups": None}
    given = spec(save_pixels(tmp_path, scheduler=diffusers.DDIMScheduler(**_DDPM), **more))
    rounds = Rounds(given.model_copy(update={"sag_layer": layer}))
    wanted = pixels(sag_scale=1.0, sag_blur_sigma=3.0)
    found = latents_of(rounds.result(wanted))
    assert_close(found, pixel_loop.alone(rounds.pipe, wanted, layer))
    other = pixel_loop.alone(rounds.pipe, wanted)
    assert float((found - other).abs().max()) > 1e-4


def test_the_kernel_is_the_authors(models: Mapping[str, Rounds]) -> None:
    """The blur's kernel is 31 x 31 at sigma 9 too, where 4 sigma are 36 cells."""
    wanted = pixels(
        class_labels=(0,), sag_scale=1.0, sag_blur_sigma=9.0, height=48, width=64,
        num_inference_steps=2,
    )  # fmt: skip
    found = latents_of(models["guided"].result(wanted))
    assert_close(found, pixel_loop.alone(models["guided"].pipe, wanted))


def test_a_request_without_a_class_is_one_of_none(models: Mapping[str, Rounds]) -> None:
    """Null is the class for none."""
    wanted = pixels(sag_scale=0.5)
    found = latents_of(models["guided"].result(wanted))
    assert_close(found, pixel_loop.alone(models["guided"].pipe, wanted))


@pytest.mark.parametrize(
    ("model", "changes", "where"),
    [
        ("plain", {"prompts": ("a star",), "guidance_scale": 7.5}, "prompt"),
        ("plain", {"negative_prompts": ("a star",)}, "negative_prompt"),
        ("plain", {"class_labels": (0,)}, "class_labels"),
        ("plain", {"clip_skip": 0}, "clip_skip"),
        ("plain", {"image": b"", "height": 64, "width": 64}, "image"),
        ("plain", {"height": 65}, "height"),
        ("classes", {}, "class_labels"),
        ("classes", {"class_labels": (CLASSES,)}, "class_labels"),
        ("classes", {"class_labels": (0,), "guidance_scale": 2.0}, "guidance_scale"),
        ("guided", {"class_labels": (NULL,)}, "class_labels"),
        ("guided", {"class_labels": (0, NULL)}, "class_labels[1]"),
        ("guided", {"guidance_scale": 2.0}, "guidance_scale"),
        ("plain", {"guidance_scale": 2.0}, "guidance_scale"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(
    models: Mapping[str, Rounds], model: str, changes: dict[str, Any], where: str
) -> None:
    """A field that the model can't use is an error that names it, and no picture."""
    with pytest.raises(BadRequestError) as caught:
        models[model].result(pixels(**changes))
    assert [fault["where"] for fault in caught.value.details["faults"]] == [where]
