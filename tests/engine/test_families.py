"""Stable Diffusion XL, pictures to start from and masks: against diffusers, without SAG.

Each request shares calls with others: of other samplers, with SAG, without a picture.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from tests.engine import oracle
from tests.engine.cases import nightly, rotated
from tests.engine.jobs import Rounds, assert_close, job, latents_of
from tests.engine.pictures import masked, picture
from tests.engine.small_models import POOLED
from worker.engine import safetensors_io
from worker.engine.sampling import samplers
from worker.errors import BadRequestError

if TYPE_CHECKING:
    from worker.engine.jobs.job import Job

#: Steps in which a sampler uses its highest order, also where it makes 0.6 of them.
STEPS = 8
BY_DAY = (
    "ddim",
    "pndm",
    "dpmpp_2m",
    "dpmpp_2s",
    "unipc",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "kdpm2",
)
SAMPLERS = [each for each in samplers.SAMPLERS if each != "ipndm"]


def cases(strengths: list[float]) -> list[Any]:
    """One sampler of each class by day, with each strength in turn; the others by night."""
    others = [each for each in SAMPLERS if each not in BY_DAY]
    return [*rotated(BY_DAY, strengths), *nightly(*product(others, strengths))]


def wanted(**changes: Any) -> Job:
    return job(**({"num_inference_steps": STEPS, "sag_scale": 0.0} | changes))


def in_company(rounds: Rounds, each: Job, others: list[Job]) -> torch.Tensor:
    """The latents of a job that shares its calls with others."""
    futures = [rounds.submit(other) for other in others]
    rounds.batch.step()
    future = rounds.submit(each)
    rounds.run()
    for other in futures:
        other.result(timeout=0)
    return latents_of(future.result(timeout=0))


def texts() -> list[Job]:
    """Jobs from noise, with SAG and without."""
    return [wanted(sag_scale=0.75, scheduler="euler"), wanted(guidance_scale=1.0, sag_scale=1.0)]


def pictures() -> list[Job]:
    """Jobs with a mask, with SAG and without."""
    return [wanted(sag_scale=0.75, **masked(seed=3)), wanted(scheduler="heun", **masked(seed=4))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scheduler": "euler", "prompts_2": ("a blue ring",)},
        {
            "negative_prompts": ("a ring",),
            "negative_prompts_2": ("a star",),
            "scheduler": "dpmpp_2m",
        },
        {"negative_prompts": ("",)},
        {"prompts_2": ("",), "negative_prompts": ("a ring",), "negative_prompts_2": ("",)},
        {"guidance_scale": 1.0, "scheduler": "ddim", "eta": 0.7},
        {"original_size": (512, 256), "crops_coords_top_left": (8, 16), "target_size": (40, 64)},
        {"height": 48, "width": 80, "clip_skip": 1},
        {"guidance_rescale": 0.7, "guidance_scale": 9.0},
        {
            "prompts": ("a red star", "a green ring"),
            "num_images_per_prompt": 2,
            "seeds": (1, 7, 8, 9),
        },
    ],
    ids=str,
)
def test_xl_is_diffusers(xl: Rounds, changes: dict[str, Any]) -> None:
    """A request to Stable Diffusion XL gives the latents of `StableDiffusionXLPipeline`."""
    each = wanted(**changes)
    assert_close(in_company(xl, each, texts()), oracle.plain(xl.pipe, each))


def test_xl_reports_what_each_encoder_cut(xl: Rounds) -> None:
    """The ends of prompts of both encoders are in the result."""
    long = ("a red star" + " blue" * 90,)
    brief = {"num_inference_steps": 1, "negative_prompts": ("a ring",)}
    for changes in ({"prompts_2": long}, {"negative_prompts_2": long}):
        assert len(xl.result(wanted(**brief, **changes)).truncated) == 1
    assert len(xl.result(wanted(**brief, prompts=long, prompts_2=long)).truncated) == 2


def test_xl_takes_embeddings(xl: Rounds) -> None:
    """Text embeddings come with pooled ones; zeros stand for no negative prompt."""
    pipe = xl.pipe
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt("a red star", device="cpu")
    assert not negative.any()
    given = {
        "prompts": (),
        "prompt_embeds": safetensors_io.write(embeds[0]),
        "pooled_prompt_embeds": safetensors_io.write(pooled[0]),
    }
    texts_of = in_company(xl, wanted(prompts=("a red star",)), texts())
    assert_close(in_company(xl, wanted(**given), texts()), texts_of)
    both = given | {
        "negative_prompt_embeds": safetensors_io.write(negative[0]),
        "negative_pooled_prompt_embeds": safetensors_io.write(negative_pooled[0]),
    }
    assert_close(in_company(xl, wanted(**both), texts()), texts_of)
    with pytest.raises(BadRequestError, match="pooled_prompt_embeds"):
        xl.result(wanted(**(given | {"pooled_prompt_embeds": None})))
    two = safetensors.torch.save({"pooled": torch.zeros(2, POOLED)})
    with pytest.raises(BadRequestError, match="pooled_prompt_embeds"):
        xl.result(wanted(**(given | {"pooled_prompt_embeds": two})))


@pytest.mark.parametrize(("name", "strength"), cases([0.3, 1.0]))
def test_image_to_image_is_diffusers(rounds: Rounds, name: str, strength: float) -> None:
    """Image to image gives the latents of diffusers' pipeline, with each sampler and strength."""
    each = wanted(scheduler=name, **(picture(48, 64) | {"strength": strength}))
    others = [*texts(), wanted(sag_scale=0.75, **picture(seed=5))]
    assert_close(in_company(rounds, each, others), oracle.plain(rounds.pipe, each))


@pytest.mark.parametrize(("name", "strength"), cases([0.5, 1.0]))
def test_inpainting_is_diffusers(rounds: Rounds, name: str, strength: float) -> None:
    """Inpainting by a UNet without a mask gives the latents of diffusers' pipeline."""
    each = wanted(scheduler=name, **(masked(48, 64) | {"strength": strength}))
    others = [*texts(), *pictures()]
    assert_close(in_company(rounds, each, others), oracle.plain(rounds.pipe, each))


@pytest.mark.parametrize(("name", "strength"), cases([0.5, 1.0]))
def test_inpainting_models_are_diffusers(inpainting: Rounds, name: str, strength: float) -> None:
    """A model made for inpainting gives the latents of diffusers' inpainting pipeline."""
    each = wanted(scheduler=name, **(masked() | {"strength": strength}))
    assert_close(in_company(inpainting, each, pictures()), oracle.plain(inpainting.pipe, each))


@pytest.mark.parametrize("make", [picture, masked])
@pytest.mark.parametrize("name", ["ddim", "euler_a", "heun"])
def test_xl_starts_from_pictures(xl: Rounds, name: str, make: Any) -> None:
    """SDXL's image to image and inpainting give the latents of diffusers' pipelines."""
    each = wanted(scheduler=name, prompts_2=("a blue ring",), **make(48, 64))
    assert_close(in_company(xl, each, [*texts(), *pictures()]), oracle.plain(xl.pipe, each))


def test_zeros_for_no_negative_prompt_have_the_length_of_the_embeddings(xl: Rounds) -> None:
    """Embeddings longer than the tokenizer's need no negative ones, as in diffusers."""
    embeds, _, pooled, _ = xl.pipe.encode_prompt("a red star", device="cpu")
    long = torch.cat([embeds[0], embeds[0][:9]])
    each = wanted(
        prompts=(),
        prompt_embeds=safetensors_io.write(long),
        pooled_prompt_embeds=safetensors_io.write(pooled[0]),
    )
    assert_close(in_company(xl, each, texts()), oracle.plain(xl.pipe, each))
    with pytest.raises(BadRequestError, match="prompt_embeds"):
        xl.result(replace(each, negative_prompts=("a ring",)))


def test_each_image_of_a_task_has_its_own_noise(rounds: Rounds) -> None:
    """Each image of a job starts from its picture with noise of its own, as if it were alone."""
    each = wanted(
        prompts=("a red star", "a green ring"), num_images_per_prompt=2, scheduler="euler_a",
        **masked(),
    )  # fmt: skip
    expected = [oracle.plain(rounds.pipe, oracle.one_image(each, n)) for n in range(4)]
    assert_close(in_company(rounds, each, texts()), torch.cat(expected))


def refused(rounds: Rounds, **changes: Any) -> list[str]:
    """The fields that are refused."""
    with pytest.raises(BadRequestError) as caught:
        rounds.result(wanted(**changes))
    return [fault["where"] for fault in caught.value.details["faults"]]


def test_what_a_model_does_not_take_is_refused(rounds: Rounds) -> None:
    """Each field that a model does not take is refused by its name, all of them at once."""
    assert refused(rounds, scheduler="ipndm", **picture()) == ["scheduler"]
    assert refused(rounds, prompts_2=("a",)) == ["prompt_2"]
    sizes = {"original_size": (8, 8), "crops_coords_top_left": (0, 0), "target_size": (8, 8)}
    assert refused(rounds, **sizes) == list(sizes)
    texts = {"prompts_2": ("a",), "negative_prompts_2": ("b",)}
    assert refused(rounds, **texts, **sizes) == ["prompt_2", "negative_prompt_2", *sizes]


def test_what_a_model_for_inpainting_lacks_is_refused(inpainting: Rounds) -> None:
    """Picture and mask are both named where both are missing."""
    assert refused(inpainting) == ["image", "mask_image"]
    assert refused(inpainting, **picture()) == ["mask_image"]
