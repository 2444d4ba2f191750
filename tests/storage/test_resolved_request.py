"""Requests with the defaults of their model, and the engine's job for them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import InvalidRequest
from api_contracts.parse import parse_request
from api_contracts.request import GenerationRequest
from tests.storage.test_fetch import PICTURES, resolved
from worker.config.models import Adapter, Lora, ModelDefaults, ModelSpec
from worker.engine.jobs.job import Job
from worker.errors import BadRequestError
from worker.execution.resolved_request import ResolvedRequest

if TYPE_CHECKING:
    from worker.config.settings import Settings


def test_each_field_reaches_the_job(settings: Settings) -> None:
    """Each field of a request reaches the job under the name that the engine has for it."""
    same = {
        "sag_blur_sigma": 2.5, "sag_mask_threshold": 0.5, "sag_start": 0.25, "sag_stop": 0.75,
        "guidance_rescale": 0.7, "sag_scale": 1.5, "guidance_scale": 4.5, "eta": 0.5,
        "num_inference_steps": 7, "num_images_per_prompt": 2, "scheduler": "ddim",
        "output_type": "webp", "preview_every": 3, "clip_skip": 1, "height": 72, "width": 80,
    }  # fmt: skip
    sizes = {"original_size": [90, 80], "crops_coords_top_left": [3, 4], "target_size": [70, 60]}
    texts = {"negative_prompt": "n", "prompt_2": "second", "negative_prompt_2": ["n2"]}
    job = resolved(settings, **same, **sizes, **texts, seed=5).job({})
    assert {name: getattr(job, name) for name in same} == same
    assert {name: list(getattr(job, name)) for name in sizes} == sizes
    assert (job.prompts, job.negative_prompts) == (("x",), ("n",))
    assert (job.prompts_2, job.negative_prompts_2) == (("second",), ("n2",))
    assert (job.seeds, job.id, job.model) == ((5,), "t", "default")
    assert (job.image, job.mask_image, job.strength) == (None, None, 1.0)


def test_what_is_left_out_is_the_engines_default(settings: Settings) -> None:
    """The contract and `Job` agree on every default that both have."""
    job = resolved(settings).job({})
    defaults = {each.name: each.default for each in dataclasses.fields(Job)}
    given = {name: value for name, value in defaults.items() if value is not dataclasses.MISSING}
    assert {name: getattr(job, name) for name in given} == given


def test_parameters_say_strength_only_with_an_image(settings: Settings) -> None:
    """`parameters` contain `strength` only where a picture was used."""
    assert "strength" not in resolved(settings).parameters
    used = resolved(settings, **PICTURES).parameters
    assert (used["strength"], used["image"]) == (0.8, PICTURES["image"])


def test_strength_makes_a_step_exactly_where_it_says_so(settings: Settings) -> None:
    """The stated limit holds for every number of steps, given or the model's own.

    What it lets pass, the engine makes at least one step of; nothing is loaded for the rest.
    """

    def taken(steps: int, strength: float) -> bool:
        defaults = ModelDefaults(num_inference_steps=steps)
        models = {"default": ModelSpec(path="p", defaults=defaults)}
        own = settings.model_copy(update={"models": models})
        fields = {"image": PICTURES["image"], "strength": strength}
        answers = set()
        for given in (fields, fields | {"num_inference_steps": steps}):
            try:
                made = resolved(own, **given).complete
            except InvalidRequest as refusal:
                (fault,) = refusal.faults
                assert (fault.where, fault.limit) == (
                    "strength",
                    "num_inference_steps x strength >= 1",
                )
                answers.add(False)
            else:
                assert int(made.num_inference_steps * made.strength) >= 1
                answers.add(True)
        (answer,) = answers
        return answer

    for steps in range(1, 151):
        least = 1 / steps
        while steps * least < 1:
            least = math.nextafter(least, 1)
        assert taken(steps, least)
        assert not taken(steps, math.nextafter(least, 0))
    assert not taken(1, 0.8)


def test_strength_counts_with_an_image_only(settings: Settings) -> None:
    """A request of one step without a picture is not measured by the default strength."""
    assert resolved(settings, num_inference_steps=1).complete.num_inference_steps == 1


def test_an_image_has_a_size_of_its_own(settings: Settings) -> None:
    """The model's default size holds for requests without an image only."""
    defaults = ModelDefaults(height=512, width=512, num_inference_steps=9)
    own = settings.model_copy(
        update={"models": {"default": ModelSpec(path="p", defaults=defaults)}}
    )
    plain, pictured = resolved(own).complete, resolved(own, **PICTURES).complete
    assert (plain.height, plain.width, plain.num_inference_steps) == (512, 512, 9)
    assert (pictured.height, pictured.width, pictured.num_inference_steps) == (None, None, 9)


def adapted(settings: Settings, **changes: Any) -> Settings:
    """Settings of a model with two adapters."""
    adapters = {"ink": Adapter(path="i", scale=0.6), "oil": Adapter(path="o")}
    models = {"default": ModelSpec(path="p", safety_checker=False, adapters=adapters)}
    return settings.model_copy(update={"models": models} | changes)


def test_adapters_have_their_own_scales_unless_given(settings: Settings) -> None:
    """A scale that is left out is that of the settings; the result's parameters say it."""
    loras = [{"name": "ink"}, {"name": "oil", "scale": -0.5}]
    made = resolved(adapted(settings), loras=loras)
    assert made.parameters["loras"] == [{"name": "ink", "scale": 0.6}, loras[1]]
    assert made.origin["loras"] == loras
    assert made.job({}).loras == (("ink", 0.6), ("oil", -0.5))
    assert resolved(adapted(settings), loras=[{"name": "ink", "scale": 0}]).job({}).loras == (
        ("ink", 0.0),
    )
    assert resolved(adapted(settings), loras=[]).parameters["loras"] is None
    assert resolved(adapted(settings), loras=None).parameters["loras"] is None


def test_a_scale_for_all_multiplies_the_adapters(settings: Settings) -> None:
    """`cross_attention_kwargs` needs a LoRA of the model, or `loras`."""
    given = {"cross_attention_kwargs": {"scale": 0.5}}
    job = resolved(adapted(settings), loras=[{"name": "ink"}], **given).job({})
    assert job.lora_scale == 0.5
    assert job.adapters == (("ink", 0.3),)
    with pytest.raises(BadRequestError, match="cross_attention_kwargs"):
        resolved(adapted(settings), **given)


def test_adapters_that_are_not_served_are_refused(settings: Settings) -> None:
    """An unknown name is refused by its place, more than are kept loaded by their number."""

    def faults(own: Settings, *names: str) -> list[tuple[str, str]]:
        with pytest.raises(BadRequestError) as refused:
            resolved(own, loras=[{"name": name} for name in names])
        return [(each["where"], each["limit"]) for each in refused.value.details["faults"]]

    assert faults(adapted(settings), "ink", "tar") == [("loras[1].name", "ink, oil")]
    few = adapted(settings, max_adapters=1)
    assert faults(few, "ink", "oil") == [("loras", "<= 1 (SAG_MAX_ADAPTERS)")]
    bare = ModelSpec(path="p", safety_checker=False, lora=(Lora(path="l"),))
    own = settings.model_copy(update={"models": {"default": bare}})
    assert faults(own, "ink") == [("loras[0].name", "none: it has no adapters")]


@pytest.mark.parametrize("count", [1, 23, 24, 400])
def test_adapters_that_are_served_are_listed_by_whole_names(settings: Settings, count: int) -> None:
    """As many as are short enough, and the number of the others."""
    names = [f"adapter-{number:03}" for number in range(count)]
    adapters = {name: Adapter(path="i") for name in names}
    models = {"default": ModelSpec(path="p", safety_checker=False, adapters=adapters)}
    with pytest.raises(BadRequestError) as refused:
        resolved(settings.model_copy(update={"models": models}), loras=[{"name": "tar"}])
    (fault,) = refused.value.details["faults"]
    listed, _, more = fault["limit"].partition(" and ")
    shown = listed.split(", ")
    assert shown == names[: len(shown)]
    assert len(shown) == min(count, 23)  # of 11 characters, in 300
    assert more == (f"{count - len(shown)} more" if count > len(shown) else "")


@pytest.mark.parametrize("labels", [3, [3, 4], None])
@pytest.mark.parametrize("null_class", [None, 9])
@pytest.mark.parametrize("default", [None, 4.0])
@pytest.mark.parametrize("given", [None, 2.5])
def test_labels_are_guided_only_away_from_a_class_for_none(
    settings: Settings,
    labels: int | list[int] | None,
    null_class: int | None,
    default: float | None,
    given: float | None,
) -> None:
    """A given scale stays; without a class, or a model's `null_class`, the default is 1."""
    defaults = ModelDefaults(guidance_scale=default)
    spec = ModelSpec(path="p", safety_checker=False, null_class=null_class, defaults=defaults)
    fields = {"class_labels": labels} | ({} if given is None else {"guidance_scale": given})
    request = parse_request(fields)
    own = settings.model_copy(update={"models": {"default": spec}})
    is_guided = labels is not None and null_class is not None
    usual = GenerationRequest.model_fields["guidance_scale"].default if default is None else default
    found = ResolvedRequest.of(request, "t", own).complete.guidance_scale
    assert found == (given if given is not None else usual if is_guided else 1.0)
