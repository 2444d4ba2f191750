"""The files of a request in a real S3, and the engine's job that they become."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from api_contracts.parse import parse_request
from tests.conftest import BUCKET
from tests.pictures import encoded, photo, prepared
from worker.errors import BadRequestError, InputNotFoundError
from worker.execution import input_images
from worker.execution.artifacts import Artifacts
from worker.execution.resolved_request import ResolvedRequest
from worker.job_control import Control, JobStopped, Stop
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.config.settings import Settings
    from worker.engine.jobs.job import Job

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
