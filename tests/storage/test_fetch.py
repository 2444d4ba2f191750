"""The files of a request in a real S3, and the engine's job that they become."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from api_contracts import InvalidRequest
from api_contracts.parse import parse_request
from tests.conftest import BUCKET
from tests.pictures import encoded, photo, prepared
from worker.config.models import ModelDefaults, ModelSpec
from worker.engine.job import Job
from worker.errors import BadRequestError, InputNotFoundError
from worker.execution import input_images
from worker.execution.artifacts import Artifacts
from worker.execution.resolved_request import ResolvedRequest
from worker.job_control import Control, JobStopped, Stop
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.config.settings import Settings

IMAGE, MASK = encoded(photo(), "JPEG"), encoded(photo("L", 90, 90), "PNG")
PICTURES = {"image": {"s3": "a/photo.jpg"}, "mask_image": {"s3": "a/mask.png"}}


@pytest.fixture
def upload(settings: Settings) -> Callable[[Mapping[str, bytes]], None]:
    """Puts objects into the input prefix, as a caller does."""

    def put(objects: Mapping[str, bytes]) -> None:
        client = boto3.client("s3", endpoint_url=settings.s3_endpoint_url)
        for key, data in objects.items():
            address = {"Bucket": BUCKET, "Key": f"{settings.s3_input_prefix}/{key}"}
            client.put_object(**address, Body=data)

    return put


def resolved(settings: Settings, **fields: Any) -> ResolvedRequest:
    request = parse_request({"prompt": "x"} | fields if "prompt_embeds" not in fields else fields)
    return ResolvedRequest.of(request, "t", settings)


def fetched(settings: Settings, **fields: Any) -> Job:
    return Artifacts(Storage(settings)).fetch(resolved(settings, **fields), Control())


def test_pictures_become_pixels_of_the_job(
    settings: Settings, upload: Callable[[Mapping[str, bytes]], None]
) -> None:
    """Image and mask from S3, in the size that is made, with the strength of the request."""
    upload({"a/photo.jpg": IMAGE, "a/mask.png": MASK})
    job = fetched(settings, **PICTURES, strength=0.6, width=96)
    expected = prepared(IMAGE, MASK, (None, 96))
    assert (job.height, job.width, job.strength) == (120, 96, 0.6)
    assert (job.image, job.mask_image) == (expected.image, expected.mask_image)
    alone = fetched(settings, image=PICTURES["image"])
    assert (alone.height, alone.width, alone.strength) == (120, 200, 0.8)
    assert alone.mask_image is None


@pytest.mark.parametrize("field", PICTURES)
def test_a_missing_picture_is_named(
    settings: Settings, upload: Callable[[Mapping[str, bytes]], None], field: str
) -> None:
    """A picture that is missing in S3 is `input_not_found`, with its field."""
    upload({"a/photo.jpg": IMAGE, "a/mask.png": MASK})
    with pytest.raises(InputNotFoundError) as missing:
        fetched(settings, **PICTURES | {field: {"s3": "gone.png"}})
    assert missing.value.details == {"where": field}


@pytest.mark.parametrize("field", PICTURES)
def test_a_picture_of_too_many_bytes_is_refused(
    settings: Settings,
    upload: Callable[[Mapping[str, bytes]], None],
    field: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file above the limit of inputs is refused before it is decoded."""
    monkeypatch.setattr("worker.storage.MAX_INPUT_BYTES", 20_000)
    upload({"a/photo.jpg": IMAGE, "a/mask.png": MASK, "large.png": bytes(20_001)})
    assert max(len(IMAGE), len(MASK)) <= 20_000
    fetched(settings, **PICTURES)
    with pytest.raises(BadRequestError) as refused:
        fetched(settings, **PICTURES | {field: {"s3": "large.png"}})
    (fault,) = refused.value.details["faults"]
    assert (fault["where"], fault["limit"]) == (field, "<= 20000 bytes")


def test_the_content_counts_and_not_the_name(
    settings: Settings, upload: Callable[[Mapping[str, bytes]], None]
) -> None:
    """A JPEG whose key ends in `.png` is read; a text that is called a picture is refused."""
    upload({"a/photo.png": IMAGE, "a/text.png": b"a text"})
    assert fetched(settings, image={"s3": "a/photo.png"}).image == prepared(IMAGE).image
    with pytest.raises(BadRequestError, match="image"):
        fetched(settings, image={"s3": "a/text.png"})


def test_one_picture_is_decoded_at_a_time(
    settings: Settings,
    upload: Callable[[Mapping[str, bytes]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One picture is decoded at a time, whatever the number of slots: each may take 1 GiB."""
    upload({"a/photo.jpg": IMAGE})
    inside, most, real = [], [], input_images.prepare

    def prepare(*arguments: Any) -> Any:
        inside.append(threading.get_ident())
        most.append(len(inside))
        time.sleep(0.02)  # long enough for the others to come in
        found = real(*arguments)
        inside.pop()
        return found

    monkeypatch.setattr(input_images, "prepare", prepare)
    artifacts, request = Artifacts(Storage(settings)), resolved(settings, image=PICTURES["image"])
    with ThreadPoolExecutor(4) as slots:
        jobs = [slots.submit(artifacts.fetch, request, Control()) for _ in range(8)]
    assert len({job.result().image for job in jobs}) == 1
    assert most == [1] * 8


@pytest.mark.parametrize("reason", [Stop.CANCELLED, Stop.DRAINED, Stop.EXPIRED])
def test_a_task_that_waits_for_another_picture_can_be_stopped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, reason: Stop
) -> None:
    """Cancelled, drained or past its deadline, it does not wait for the end of another's picture.

    Until then it has downloaded none of its own.
    """
    decoding, end, control = threading.Event(), threading.Event(), Control()
    storage = Storage(settings)
    read: list[str] = []

    def get_input(_key: str, where: str) -> bytes:
        read.append(where)
        return IMAGE

    def prepare(*_arguments: Any) -> Any:
        decoding.set()
        end.wait(30)
        raise InputNotFoundError("the first is done", where="image")

    monkeypatch.setattr(storage, "get_input", get_input)
    monkeypatch.setattr(input_images, "prepare", prepare)
    artifacts, request = Artifacts(storage), resolved(settings, image=PICTURES["image"])
    with ThreadPoolExecutor(2) as slots:
        first = slots.submit(artifacts.fetch, request, Control())
        try:
            assert decoding.wait(10)
            second = slots.submit(artifacts.fetch, request, control)
            if reason is Stop.EXPIRED:
                control.deadline_s = time.monotonic()
            else:
                control.request(reason)
            with pytest.raises(JobStopped) as stopped:
                second.result(10)
            assert not first.done()
        finally:
            end.set()
        assert isinstance(first.exception(10), InputNotFoundError)
    assert (stopped.value.reason, stopped.value.step, read) == (reason, 0, ["image"])
    monkeypatch.undo()
    with pytest.raises(InputNotFoundError):  # the next one may decode
        artifacts.fetch(request, Control())


def test_tensors_reach_the_job(
    settings: Settings, upload: Callable[[Mapping[str, bytes]], None]
) -> None:
    """The bytes of each tensor file reach the job unread."""
    names = (
        "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds", "latents",
    )  # fmt: skip
    upload({f"{name}.safetensors": name.encode() for name in names})
    job = fetched(settings, **{name: {"s3": f"{name}.safetensors"} for name in names})
    assert {name: getattr(job, name) for name in names} == {n: n.encode() for n in names}


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


def stages(settings: Settings, **fields: Any) -> list[str]:
    control = Control()
    with suppress(InputNotFoundError):
        Artifacts(Storage(settings)).fetch(resolved(settings, **fields), control)
    return [each.name for each in control.stages]


def test_reading_inputs_is_a_stage(
    settings: Settings, upload: Callable[[Mapping[str, bytes]], None]
) -> None:
    """The time to read inputs is in the attempt's trace, also when it fails; none without."""
    upload({"a/photo.jpg": IMAGE, "a.safetensors": b"a"})
    assert stages(settings, image=PICTURES["image"]) == ["fetch"]
    assert stages(settings, latents={"s3": "a.safetensors"}) == ["fetch"]
    assert stages(settings, image={"s3": "gone.png"}) == ["fetch"]
    assert stages(settings) == []


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
