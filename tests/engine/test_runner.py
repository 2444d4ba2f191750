"""One job at a time: equal to diffusers' own call, and the pipeline as fresh after as before."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NoReturn

import diffusers
import pytest
import torch

from tests.engine.jobs import fresh, job, latents_of, upstream
from worker.engine import runner, schedulers
from worker.engine.job import Control, JobStopped, Step, Stop
from worker.errors import BadRequest, UnsupportedScheduler

if TYPE_CHECKING:
    from tests.engine.jobs import Make
    from worker.engine.models import LoadedModel


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
        ({"sag_scale": 0.0}, {"sag_scale": 0.0}),
        ({"eta": 0.6}, {"eta": 0.6}),
        ({"negative_prompts": ("a green ring",)}, {"negative_prompt": "a green ring"}),
        ({"height": 72, "width": 96}, {"height": 72, "width": 96}),
    ],
)
def test_a_job_is_diffusers_own_call(
    loaded: LoadedModel, make: Make, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """A request makes, bit for bit, the latents that diffusers alone makes with its names."""
    assert torch.equal(latents_of(make(**ours)), upstream(loaded, **theirs))


def test_prompts_and_images_are_in_diffusers_order(loaded: LoadedModel, make: Make) -> None:
    """Several prompts and images come prompt by prompt, each image from its own seed."""
    prompts = ("a red ring on a white background", "a cyan cross on a black background")
    result = make(prompts=prompts, num_images_per_prompt=2, seeds=(9,))
    expected = upstream(
        loaded,
        prompt=list(prompts),
        num_images_per_prompt=2,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in (9, 10, 11, 12)],
    )
    assert torch.equal(latents_of(result), expected)
    assert [picture.seed for picture in result.pictures] == [9, 10, 11, 12]


def test_the_decoded_picture_is_diffusers_own(loaded: LoadedModel, make: Make) -> None:
    """Decoding apart from denoising changes no pixel."""
    ours = make(output_type="png").pictures[0]
    theirs: Any = upstream(loaded, output_type="pil")
    assert ours.pixels.tobytes() == theirs[0].tobytes()
    assert (ours.width, ours.height) == ours.pixels.size == (64, 64)


def test_every_prompt_may_have_its_own_negative_or_share_one(make: Make) -> None:
    """One negative prompt stands for all prompts."""
    prompts = ("a red ring on a white background", "a cyan cross on a black background")
    shared = make(prompts=prompts, negative_prompts=("blue",))
    spelled = make(prompts=prompts, negative_prompts=("blue", "blue"))
    assert torch.equal(latents_of(shared), latents_of(spelled))


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stopped_job_leaves_a_fresh_pipeline(after: int) -> None:
    """Whatever step a job is stopped at, the next picture is bit-equal to a fresh pipeline's."""
    model = fresh()
    processors = {name: type(each) for name, each in model.pipeline.unet.attn_processors.items()}
    scheduler = model.pipeline.scheduler
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
        runner.run(model, job(), control, (0.0, 0.0))
    assert (stopped.value.reason, stopped.value.step, len(seen)) == (Stop.CANCELLED, after, after)
    now = {name: type(each) for name, each in model.pipeline.unet.attn_processors.items()}
    assert now == processors
    assert model.pipeline.scheduler is scheduler
    again = runner.run(model, job(), Control(), (0.0, 0.0))
    first = runner.run(fresh(), job(), Control(), (0.0, 0.0))
    assert torch.equal(latents_of(again), latents_of(first))


def test_a_job_that_breaks_leaves_a_fresh_pipeline(loaded: LoadedModel, make: Make) -> None:
    """A fault in the middle of a step, too, leaves no processor behind."""
    before = latents_of(make())
    processors = dict(loaded.pipeline.unet.attn_processors)
    control = Control(on_step=lambda _: 1 / 0)  # type: ignore[arg-type]  # it is to break
    with pytest.raises(ZeroDivisionError):
        make(control=control)
    assert dict(loaded.pipeline.unet.attn_processors) == processors
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


def test_steps_are_told_with_the_time_left(make: Make) -> None:
    """Each step is told once, in order, and the last leaves nothing to do."""
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


DPMPP, SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
PLAIN, KARRAS = {"use_karras_sigmas": False}, {"use_karras_sigmas": True}
#: Each served name, as somebody would build it with diffusers alone.
BUILT: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, DPMPP | PLAIN),
    "dpmpp_2m_karras": (diffusers.DPMSolverMultistepScheduler, DPMPP | KARRAS),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, SDE | PLAIN),
    "dpmpp_2m_sde_karras": (diffusers.DPMSolverMultistepScheduler, SDE | KARRAS),
    "dpmpp_2s": (diffusers.DPMSolverSinglestepScheduler, DPMPP | PLAIN),
    "unipc": (diffusers.UniPCMultistepScheduler, PLAIN),
    "deis": (diffusers.DEISMultistepScheduler, PLAIN),
}


def test_every_served_scheduler_is_tried() -> None:
    """The table above has all that are served."""
    assert set(BUILT) == {name for name, each in schedulers.SAMPLERS.items() if each.served}


@pytest.mark.parametrize("name", BUILT)
def test_a_scheduler_by_name_is_diffusers_own(
    loaded: LoadedModel, make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A name on the wire makes, bit for bit, what diffusers makes with that scheduler built."""
    seen: list[Step] = []
    ours = make(control=Control(on_step=seen.append), scheduler=name, num_inference_steps=5)
    kind, options = BUILT[name]
    own = loaded.pipeline.scheduler
    monkeypatch.setattr(loaded.pipeline, "scheduler", kind.from_config(own.config, **options))
    assert torch.equal(latents_of(ours), upstream(loaded, num_inference_steps=5))
    assert ours.scheduler == name
    assert seen[-1].step == 5


@pytest.mark.parametrize("name", BUILT)
def test_a_models_own_scheduler_has_its_name(
    loaded: LoadedModel, make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without a name the model's own is used, and the result tells which it was."""
    kind, options = BUILT[name]
    own = kind.from_config(loaded.pipeline.scheduler.config, **options)
    monkeypatch.setattr(loaded.pipeline, "scheduler", own)
    assert make(num_inference_steps=2).scheduler == name


def test_a_name_means_the_same_on_every_model(
    loaded: LoadedModel, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dpmpp_2m` has no Karras sigmas, also where the model's own scheduler has."""
    before = latents_of(make(scheduler="dpmpp_2m"))
    own = loaded.pipeline.scheduler
    karras = diffusers.DPMSolverMultistepScheduler.from_config(own.config, **KARRAS)
    monkeypatch.setattr(loaded.pipeline, "scheduler", karras)
    assert torch.equal(latents_of(make(scheduler="dpmpp_2m")), before)


@pytest.mark.parametrize(
    "name", [*(n for n, s in schedulers.SAMPLERS.items() if not s.served), "nonsense"]
)
def test_other_schedulers_are_refused_by_name(make: Make, name: str) -> None:
    """A scheduler that can't be combined with guidance yet, or is unknown, is refused at once."""
    with pytest.raises(UnsupportedScheduler) as refused:
        make(scheduler=name)
    assert name in refused.value.message
    assert "ddim" in refused.value.details["served"]


def test_eta_is_refused_where_it_has_no_meaning(make: Make) -> None:
    """`eta` with a scheduler that would drop it in silence is a fault that names it."""
    with pytest.raises(BadRequest) as refused:
        make(scheduler="pndm", eta=0.5)
    assert refused.value.details["faults"][0]["where"] == "eta"


def test_a_list_of_seeds_must_fit(make: Make) -> None:
    """As many seeds as images, or one."""
    with pytest.raises(BadRequest) as refused:
        make(seeds=(1, 2, 3), num_images_per_prompt=2)
    assert refused.value.details["faults"][0]["where"] == "seed"


def test_a_device_that_fails_ends_the_process_and_no_task(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After such an error every later job would fail too: the process must not eat the queue."""

    def leave(status: int) -> NoReturn:
        raise SystemExit(status)

    def fail(_step: Step) -> NoReturn:
        message = "device-side assert"
        raise torch.AcceleratorError(message)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as left:
        make(control=Control(on_step=fail))
    assert left.value.code == runner.DEVICE_FAILED


def test_what_a_prompt_loses_is_told(make: Make) -> None:
    """The text encoder reads so many tokens; what is beyond has no effect, and the result says it.

    What fits is told as nothing.
    """
    fits = "a large red star on a blue background"
    long = fits + " blue" * 40
    assert make(prompts=(fits,)).truncated == ()
    (lost,) = make(prompts=(long,)).truncated
    assert long.endswith(lost)
    assert torch.equal(
        latents_of(make(prompts=(long,))),
        latents_of(make(prompts=(long.removesuffix(f" {lost}"),))),
    )
    assert len(make(negative_prompts=(long,)).truncated) == 1
    assert make(negative_prompts=(long,), guidance_scale=1.0).truncated == ()
