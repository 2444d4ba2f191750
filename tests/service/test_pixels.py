"""A worker of a pixel-space model: requests of classes instead of prompts, from end to end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from api_contracts import GenerationFailed
from tests.engine.small_models import save_pixels
from tests.service.conftest import END_S, check_events, sag_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

NULL, CLASSES = 3, 3
SPEC: dict[str, Any] = {"safety_checker": False, "dtype": "float32"}
SHORT: dict[str, Any] = {"model": "default", "num_inference_steps": 3}


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory,
    start_service: Callable[..., AbstractContextManager[Service]],
    redis_url: str,
) -> Iterator[Service]:
    """A worker of two pixel-space models: of classes, with one for none, and without classes."""
    folder = tmp_path_factory.mktemp("pixels")
    schedule = diffusers.DDIMScheduler(beta_end=0.012)
    classes = save_pixels(folder / "a", scheduler=schedule, num_class_embeds=CLASSES + 1)
    plain = save_pixels(folder / "b", scheduler=schedule)
    models = {
        "default": SPEC | {"path": str(classes), "null_class": NULL},
        "plain": SPEC | {"path": str(plain), "defaults": {"sag_blur_sigma": 3.0}},
    }  # fmt: skip
    with start_service(redis_url, models=json.dumps(models), max_models="2") as service:
        yield service


def test_a_picture_for_each_class(worker: Service) -> None:
    """A list of labels is a list of pictures; the result says every value that was used."""
    handle = worker.client.submit(
        SHORT | {"class_labels": [2, 0], "seed": 7, "guidance_scale": 2.0, "preview_every": 1}
    )
    events = list(handle.events(timeout=END_S))
    check_events(events)
    result = handle.result(END_S)
    assert [(each.width, each.height, each.seed) for each in result.images] == [
        (16, 16, 7), (16, 16, 8),
    ]  # fmt: skip
    assert result.parameters["class_labels"] == [2, 0]
    assert result.parameters["prompt"] is None
    previews = [event.preview for event in events if event.type == "progress"]
    assert all(each and each.startswith("data:image/jpeg") for each in previews)


def test_no_class(worker: Service) -> None:
    """Null is no class; a model without classes takes nothing else, and has its own sigma."""
    for model in ("default", "plain"):
        handle = worker.client.submit(SHORT | {"model": model, "class_labels": None})
        assert len(handle.result(END_S).images) == 1
    assert handle.result(END_S).parameters["sag_blur_sigma"] == 3.0


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"class_labels": CLASSES + 1}, "class_labels"),
        ({"class_labels": NULL}, "class_labels"),
        ({"prompt": "a star"}, "prompt"),
        ({"class_labels": 0, "clip_skip": 1}, "clip_skip"),
        ({"model": "plain", "class_labels": 0}, "class_labels"),
    ],
)
def test_what_the_model_can_not_use_is_named(
    worker: Service, fields: dict[str, Any], where: str
) -> None:
    """The task fails once, as an invalid request whose fault names the field."""
    handle = worker.client.submit(SHORT | fields)
    with pytest.raises(GenerationFailed) as failed:
        handle.result(END_S)
    assert failed.value.error.code == "invalid_request"
    assert [fault["where"] for fault in failed.value.error.details["faults"]] == [where]


@pytest.mark.parametrize(("labels", "count"), [("[1, 2]", 2), ("null", 1)])
def test_from_the_command_line(worker: Service, tmp_path: Path, labels: str, count: int) -> None:
    """`submit --set class_labels=…` needs no prompt, and its picture is made again from itself."""
    first, again = tmp_path / "first", tmp_path / "again"
    flags = ["--set", f"class_labels={labels}", "--seed", "5", "--steps", "3", "--sag-scale", "1"]
    done = sag_worker(worker, "submit", *flags, "--wait", "--out", str(first))
    assert done.returncode == 0, done.stderr
    made = sorted(first.iterdir())
    assert len(made) == count
    for file in made:
        done = sag_worker(
            worker, "submit", "--from-image", str(file), "--wait", "--out", str(again)
        )
        assert done.returncode == 0, done.stderr
        (copy,) = again.iterdir()
        with Image.open(file) as one, Image.open(copy) as other:
            difference = np.asarray(one, int) - np.asarray(other, int)
        assert np.abs(difference).max() <= 1  # calls of two rows, and of one
        copy.unlink()
    done = sag_worker(worker, "submit", "--seed", "5")
    assert done.returncode == 2
    assert "PROMPT" in done.stderr
    assert "--set class_labels=3" in done.stderr
