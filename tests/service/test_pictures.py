"""What a worker makes of a request: files, events, result, refusals."""

from __future__ import annotations

import hashlib
import io
import json
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from api_contracts import GenerationFailed, GenerationRequest, GenerationResult, TaskStatus
from tests.service.conftest import END_S, PROMPT, check_events, sag_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery import Celery

    from tests.conftest import Service

QUICK = {"prompt": PROMPT, "num_inference_steps": 2, "seed": 3}


def test_plain_celery_gets_the_result(plain_celery: Celery) -> None:
    """A Celery producer without this project's code gets the result from `AsyncResult.get()`."""
    answer = plain_celery.send_task(
        "sag.generate", kwargs={"request": QUICK}, queue="generate.default"
    )
    result = GenerationResult.model_validate(answer.get(timeout=END_S))
    assert answer.state == "SUCCESS"
    assert result.images[0].seed == 3


def test_the_same_request_is_the_same_bytes(
    service: Service, stored: Callable[[str], dict[str, bytes]]
) -> None:
    """Two tasks with one seed store equal files, each below its id, with a manifest.

    They run one after the other: tasks that share calls may differ by 1 of 255.
    """
    files = []
    for _ in range(2):
        handle = service.client.submit(QUICK | {"num_images_per_prompt": 2})
        result = handle.result(END_S)
        folder = f"{service.prefix}/{handle.task_id}/"
        found = stored(folder)
        assert sorted(found) == [f"{folder}0.png", f"{folder}1.png", f"{folder}manifest.json"]
        for image in result.images:
            assert hashlib.sha256(found[image.key]).hexdigest() == image.sha256
            assert len(found[image.key]) == image.bytes
        manifest = json.loads(found[result.manifest_key])
        assert manifest["task_id"] == handle.task_id
        assert [image["seed"] for image in manifest["images"]] == [3, 4]
        files.append([found[f"{folder}{number}.png"] for number in range(2)])
    assert files[0] == files[1]
    assert files[0][0] != files[0][1]


def test_a_png_carries_its_request(service: Service) -> None:
    """The PNG has request, parameters and versions; the request sent again gives equal bytes."""
    result = service.client.submit(QUICK).result(END_S)
    data = urllib.request.urlopen(str(result.images[0].url), timeout=30).read()
    with Image.open(io.BytesIO(data)) as picture:
        origin = json.loads(picture.text["sag-worker"])  # type: ignore[attr-defined]  # a PNG has it
    assert origin["request"] == QUICK
    assert origin["versions"] == result.versions
    assert origin["parameters"]["scheduler"] == result.scheduler == "ddim"
    again = service.client.submit(origin["request"]).result(END_S)
    assert again.images[0].sha256 == result.images[0].sha256


def test_events_are_gapless_and_end_once(service: Service) -> None:
    """Events are `queued`, `started`, progress, `uploading` and one terminal event, gapless."""
    request = GenerationRequest(
        prompt=PROMPT, num_inference_steps=6, callback_steps=4, metadata={"order": "17 ★"}
    )
    events = list(service.client.submit(request).events(timeout=END_S))
    check_events(events)
    kinds = [event.type for event in events if event.type != "loading"]
    assert kinds[:2] == ["queued", "started"]
    assert kinds[-2:] == ["uploading", "succeeded"]
    steps = [event.step for event in events if event.type == "progress"]
    assert steps == [4, 6]
    assert all(event.metadata == {"order": "17 ★"} for event in events)
    assert {event.attempt for event in events} == {0, 1}


def test_defaults_come_from_the_model_and_are_reported(standard: Service) -> None:
    """Fields left out take the model's defaults, and the result names all values used."""
    result = standard.client.submit({"prompt": PROMPT}).result(END_S)
    used = result.parameters
    assert (used["num_inference_steps"], used["guidance_scale"]) == (5, 3.0)
    assert (used["height"], used["width"], used["scheduler"]) == (64, 64, "ddim")
    assert used["seed"] == result.images[0].seed
    timings = result.timings
    assert timings.total_s >= timings.denoise_s + timings.upload_s > 0


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("jpeg", "jpg"), ("webp", "webp"), ("npy", "npy"), ("latent", "safetensors")],
)
def test_each_output_type_is_stored_by_its_ending(service: Service, kind: str, ending: str) -> None:
    """Every output type is stored as a file with its ending."""
    result = service.client.submit(QUICK | {"output_type": kind}).result(END_S)
    assert result.images[0].key.endswith(f"/0.{ending}")


def test_a_latent_result_can_be_an_input(
    service: Service, stored: Callable[[str], dict[str, bytes]]
) -> None:
    """A latent file in the input prefix serves as `latents`; a missing one fails the task."""
    import boto3

    from tests.conftest import BUCKET

    made = service.client.submit(QUICK | {"output_type": "latent"}).result(END_S)
    data = stored(made.images[0].key)[made.images[0].key]
    client = boto3.client("s3", endpoint_url=service.environment["SAG_S3_ENDPOINT_URL"])
    prefix = service.environment["SAG_S3_INPUT_PREFIX"]
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/start.safetensors", Body=data)
    request = QUICK | {"latents": {"s3": "start.safetensors"}}
    assert service.client.submit(request).result(END_S).images[0].sha256
    with pytest.raises(GenerationFailed) as failed:
        service.client.submit(QUICK | {"latents": {"s3": "gone.safetensors"}}).result(END_S)
    assert failed.value.error.code == "input_not_found"


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        ({"scheduler": "nonsense"}, "unsupported_scheduler", "scheduler"),
        ({"scheduler": "pndm", "eta": 0.5}, "invalid_request", "eta"),
        ({"clip_skip": 3}, "invalid_request", "clip_skip"),
        ({"clip_skip": 1, "scheduler": "euler_a"}, None, None),
        ({"scheduler": "lms", "preview_every": 1}, None, None),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "invalid_request", "cross_attention_kwargs"),
        ({"model": "other"}, "unknown_model", "model"),
        ({"num_inference_steps": 151}, "invalid_request", "num_inference_steps"),
        ({"height": 2048}, "invalid_request", "height"),
        ({"num_images_per_prompt": 5}, "invalid_request", "num_images_per_prompt"),
        ({"eta": 0.5, "scheduler": None}, None, None),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(
    service: Service,
    plain_celery: Celery,
    change: dict[str, Any],
    code: str | None,
    where: str | None,
) -> None:
    """Each field has an effect or is refused by an error that names it, in Celery's result too."""
    task_id = str(uuid.uuid4())
    answer = plain_celery.send_task(
        "sag.generate",
        kwargs={"request": QUICK | change},
        queue="generate.default",
        task_id=task_id,
    )
    if code is None:
        assert answer.get(timeout=END_S)["images"]
        return
    with pytest.raises(GenerationFailed) as failed:
        answer.get(timeout=END_S)
    assert failed.value.error.code == code
    events = list(service.client.handle(task_id).events(timeout=END_S))
    check_events(events)
    assert events[-1].type == "failed"
    details = events[-1].error.details
    assert where == details.get("where") or where in {fault["where"] for fault in details["faults"]}


def test_one_id_is_one_task(service: Service) -> None:
    """An id that is submitted again, while it runs and after its end, stays one task."""
    task_id = f"twice-{uuid.uuid4().hex}"
    first = service.client.submit(QUICK, task_id)
    second = service.client.submit(QUICK, task_id)
    assert first.result(END_S) == second.result(END_S)
    service.client.submit(QUICK, task_id)
    events = list(first.events(timeout=END_S))
    check_events(events)
    assert [event.type for event in events].count("started") == 1
    assert first.status() is TaskStatus.SUCCEEDED


def test_submit_saves_the_picture(service: Service, tmp_path: Path) -> None:
    """`submit --wait --out` saves a picture of the prompt; with the same seed, the same bytes."""
    saved = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        done = sag_worker(
            service, "submit", PROMPT, "--seed", "1", "--steps", "8", "--wait",
            "--out", str(folder),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        task_id, path = done.stdout.splitlines()
        assert task_id in path
        saved.append(next(folder.iterdir()).read_bytes())
    assert saved[0] == saved[1]
    with Image.open(io.BytesIO(saved[0])) as picture:
        red, green, blue = picture.convert("RGB").getpixel((32, 32))  # type: ignore[misc]  # three of RGB
        assert red > 150
        assert max(green, blue) < 100
        for corner in ((2, 2), (61, 2), (2, 61), (61, 61)):
            assert min(picture.convert("RGB").getpixel(corner)) > 200  # type: ignore[arg-type]  # three of RGB


def test_submit_prints_every_fault(service: Service) -> None:
    """The command prints each fault with its limit, ends with 2, and prints no traceback."""
    done = sag_worker(service, "submit", "x" * 3000, "--height", "65")
    assert done.returncode == 2
    assert "prompt" in done.stderr
    assert "height" in done.stderr
    assert "Traceback" not in done.stderr
