"""A job alone: equal to diffusers' own call; the pipeline is unchanged afterwards."""

from __future__ import annotations

import time
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from tests.engine.cases import slow
from tests.engine.jobs import Make, Rounds, assert_close, job, latents_of, upstream
from worker.errors import BadRequestError
from worker.exit_codes import DEVICE_FAILED
from worker.job_control import Control, JobStopped, Step, Stop


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
        *slow(
            ({"sag_scale": 0.0}, {"sag_scale": 0.0}),
            ({"eta": 0.6}, {"eta": 0.6}),
            ({"height": 72, "width": 96}, {"height": 72, "width": 96}),
        ),
        (
            {"negative_prompts": ("a green ring",), "eta": 0.6, "height": 40, "width": 56},
            {"negative_prompt": "a green ring", "eta": 0.6, "height": 40, "width": 56},
        ),
    ],
)
def test_a_job_is_diffusers_own_call(
    rounds: Rounds, make: Make, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """A request gives the latents that diffusers gives for the same arguments."""
    assert_close(latents_of(make(**ours)), upstream(rounds.pipe, **theirs))


def test_prompts_and_images_are_in_diffusers_order(rounds: Rounds, make: Make) -> None:
    """Images come prompt by prompt, each from its own seed."""
    prompts = ("a red ring on a white background", "a cyan cross on a black background")
    result = make(prompts=prompts, num_images_per_prompt=2, seeds=(9,))
    expected = upstream(
        rounds.pipe,
        prompt=list(prompts),
        num_images_per_prompt=2,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in (9, 10, 11, 12)],
    )
    assert_close(latents_of(result), expected)
    assert [picture.seed for picture in result.images] == [9, 10, 11, 12]


def test_the_decoded_picture_is_diffusers_own(rounds: Rounds, make: Make) -> None:
    """The decoded picture differs from diffusers' by at most 1 of 255."""
    ours = make(output_type="png").images[0]
    theirs: Any = upstream(rounds.pipe, output_type="pil")
    difference = np.asarray(ours.pixels, np.int16) - np.asarray(theirs[0], np.int16)
    assert np.abs(difference).max() <= 1
    assert (ours.width, ours.height) == ours.pixels.size == (64, 64)


def test_every_prompt_may_have_its_own_negative_or_share_one(make: Make) -> None:
    """One negative prompt stands for all prompts."""
    prompts = ("a red ring on a white background", "a cyan cross on a black background")
    shared = make(prompts=prompts, negative_prompts=("blue",))
    spelled = make(prompts=prompts, negative_prompts=("blue", "blue"))
    assert torch.equal(latents_of(shared), latents_of(spelled))


@pytest.fixture(scope="module")
def fresh() -> torch.Tensor:
    """The default job's latents by an engine of their own."""
    return latents_of(Rounds().result(job()))


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stopped_job_leaves_a_fresh_pipeline(
    rounds: Rounds, fresh: torch.Tensor, after: int
) -> None:
    """Whatever step a job is stopped at, the next picture has the bits of a fresh pipeline's."""
    processors = {name: type(each) for name, each in rounds.pipe.unet.attn_processors.items()}
    scheduler = rounds.pipe.scheduler
    control = Control()
    seen: list[Step] = []

    def on_step(step: Step) -> None:
        seen.append(step)
        if step.step == after:
            control.request(Stop.CANCELLED)

    control.on_step = on_step
    if after == 0:
        control.request(Stop.CANCELLED)
    with pytest.raises(JobStopped) as stopped:
        rounds.result(job(), control)
    assert (stopped.value.reason, stopped.value.step, len(seen)) == (Stop.CANCELLED, after, after)
    now = {name: type(each) for name, each in rounds.pipe.unet.attn_processors.items()}
    assert now == processors
    assert rounds.pipe.scheduler is scheduler
    assert torch.equal(latents_of(rounds.result(job())), fresh)


def test_a_job_that_breaks_leaves_a_fresh_pipeline(rounds: Rounds, make: Make) -> None:
    """An error in the middle of a step leaves no attention processor behind."""
    before = latents_of(make())
    processors = dict(rounds.pipe.unet.attn_processors)
    control = Control(on_step=lambda _: 1 / 0)  # type: ignore[arg-type]  # raises on purpose
    with pytest.raises(ZeroDivisionError):
        make(control=control)
    assert dict(rounds.pipe.unet.attn_processors) == processors
    assert torch.equal(latents_of(make()), before)


def test_a_deadline_stops_at_the_next_step(make: Make) -> None:
    """A deadline that passes during the run ends it as expired, with the step reached."""
    control = Control()

    def on_step(step: Step) -> None:
        if step.step == 2:
            control.deadline_s = time.monotonic() - 1

    control.on_step = on_step
    with pytest.raises(JobStopped) as stopped:
        make(control=control)
    assert (stopped.value.reason, stopped.value.step) == (Stop.EXPIRED, 2)


def test_steps_are_reported_with_the_time_left(make: Make) -> None:
    """Each step is reported once, in order; after the last no time is left."""
    seen: list[Step] = []
    make(control=Control(on_step=seen.append))
    assert [(step.step, step.total_steps) for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1].eta_s == 0
    assert seen[0].eta_s > 0


def test_previews_come_when_asked_and_change_nothing(make: Make) -> None:
    """`preview_every` gives a small picture every so many steps and leaves the result alone."""
    seen: list[Step] = []
    with_previews = make(control=Control(on_step=seen.append), preview_every=2)
    assert [bool(step.preview) for step in seen] == [False, True, False]
    assert str(seen[1].preview).startswith("data:image/jpeg;base64,")
    assert torch.equal(latents_of(with_previews), latents_of(make()))


def test_a_list_of_seeds_must_fit(make: Make) -> None:
    """A job has as many seeds as images, or one."""
    with pytest.raises(BadRequestError) as refused:
        make(seeds=(1, 2, 3), num_images_per_prompt=2)
    assert refused.value.details["faults"][0]["where"] == "seed"


def test_a_device_that_fails_ends_the_process_and_no_task(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error that breaks the device the process exits; it would fail every later task."""

    def leave(status: int) -> NoReturn:
        raise SystemExit(status)

    def fail(_step: Step) -> NoReturn:
        message = "device-side assert"
        raise torch.AcceleratorError(message)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as left:
        make(control=Control(on_step=fail))
    assert left.value.code == DEVICE_FAILED


def test_truncated_prompts_are_reported(make: Make) -> None:
    """The end of a prompt beyond the text encoder's length has no effect, and is in the result."""
    brief = {"num_inference_steps": 1, "height": 32, "width": 32}
    fits = "a large red star on a blue background"
    long = fits + " blue" * 40
    assert make(prompts=(fits,), **brief).truncated == ()
    (lost,) = make(prompts=(long,), **brief).truncated
    assert long.endswith(lost)
    assert torch.equal(
        latents_of(make(prompts=(long,), **brief)),
        latents_of(make(prompts=(long.removesuffix(f" {lost}"),), **brief)),
    )
    assert len(make(negative_prompts=(long,), **brief).truncated) == 1
    assert make(negative_prompts=(long,), guidance_scale=1.0, **brief).truncated == ()
