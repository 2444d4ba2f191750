"""The requests that `submit` makes of files, flags and images."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from api_contracts import InvalidRequest
from api_contracts.parse import parse_request
from worker.cli import request_sources
from worker.config.models import ModelSpec
from worker.execution import image_files
from worker.execution.resolved_request import ResolvedRequest

if TYPE_CHECKING:
    from pathlib import Path

    from worker.config.settings import Settings

PARAMETERS: dict[str, Any] = {
    "schema_version": 1, "model": "default", "prompt": ["a", "b"], "negative_prompt": ["c", "d"],
    "height": 64, "width": 64, "num_inference_steps": 5, "guidance_scale": 3.0, "sag_scale": 0.5,
    "num_images_per_prompt": 2, "eta": 0.0, "seed": [1, 2, 3, 4], "latents": None,
    "scheduler": "SomeScheduler", "output_type": "png", "callback_steps": 3, "preview_every": 2,
    "deadline_s": 9.0, "priority": 2, "metadata": {"k": "v"}, "traceparent": None,
}  # fmt: skip


def png(folder: Path, index: int, seed: int, **parameters: Any) -> Path:
    """Write a PNG as the worker does."""
    origin = {
        "request": {"prompt": ["a", "b"]}, "parameters": PARAMETERS | parameters,
        "index": index, "seed": seed, "versions": {},
    }  # fmt: skip
    return written(folder, origin)


def written(folder: Path, origin: dict[str, Any]) -> Path:
    """Write a PNG with this origin."""
    made: Any = type("Made", (), {"pixels": Image.new("RGB", (8, 8))})
    path = folder / "made.png"
    path.write_bytes(image_files.encode(made, "png", origin))
    return path


@pytest.mark.parametrize(
    ("text", "wants"),
    [
        ('{"prompt": "a"}', [{"prompt": "a"}]),
        ('[{"prompt": "a"}, {"prompt": "b"}]', [{"prompt": "a"}, {"prompt": "b"}]),
        ('{"prompt": "a"}\n\n{"prompt": "b"}\n', [{"prompt": "a"}, {"prompt": "b"}]),
    ],
)
@pytest.mark.parametrize("source", ["a file", "standard input"])
def test_requests_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, wants: Any, source: str
) -> None:
    """Requests are read as one object, a list or one a line, from a file or standard input."""
    (tmp_path / "r.json").write_text(text)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert (
        request_sources.from_json(str(tmp_path / "r.json") if source == "a file" else "-") == wants
    )


def test_each_line_is_a_prompt(tmp_path: Path) -> None:
    """Empty lines are skipped."""
    (tmp_path / "p.txt").write_text("a red circle\n\n  a green ring \n")
    found = request_sources.from_prompts(str(tmp_path / "p.txt"))
    assert found == [{"prompt": "a red circle"}, {"prompt": "a green ring"}]


@pytest.mark.parametrize("text", ['{"prompt": "a"}\nnope', "[1]", '["x"]', "5"])
def test_an_invalid_request_is_named(tmp_path: Path, text: str) -> None:
    """An invalid request in a file is named by its line or number."""
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InvalidRequest, match=r"line 2|request 0"):
        request_sources.from_json(str(tmp_path / "r.json"))


@pytest.mark.parametrize("name", ["missing", "binary"])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    """An unreadable file is named by its path."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xff")
    for read in (request_sources.from_json, request_sources.from_prompts):
        with pytest.raises(InvalidRequest, match=name):
            read(str(tmp_path / name))


def test_flags_override_files() -> None:
    """Flags that were given replace the file's values; `--set` takes any field, JSON or text."""
    flags = {"seed": 5, "width": None}
    found = request_sources.with_flags(
        [{"prompt": "a", "seed": 1}], flags, ['metadata={"k": "v"}', "scheduler=ddim", "eta=0.5"]
    )
    assert found == [
        {"prompt": "a", "seed": 5, "metadata": {"k": "v"}, "scheduler": "ddim", "eta": 0.5}
    ]
    pictured = ['image={"s3": "a.png"}', "strength=0.5", "crops_coords_top_left=[0, 8]"]
    assert request_sources.with_flags([{"prompt": "a"}], {}, pictured) == [
        {"prompt": "a", "image": {"s3": "a.png"}, "strength": 0.5, "crops_coords_top_left": [0, 8]}
    ]
    for wrong in ("nope=1", "seed", "=1"):
        with pytest.raises(InvalidRequest, match="--set"):
            request_sources.with_flags([{}], {}, [wrong])


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_an_image_is_requested_again(tmp_path: Path, index: int) -> None:
    """An image's request is for this image alone, with its prompts, seed and used values."""
    others = {"prompt_2": ["e", "f"], "negative_prompt_2": "g"}
    request = request_sources.from_image_file(png(tmp_path, index, seed=index + 1, **others))
    assert request["prompt"] == "aabb"[index]
    assert request["negative_prompt"] == "ccdd"[index]
    assert request["seed"] == index + 1
    assert (request["num_inference_steps"], request["sag_scale"]) == (5, 0.5)
    assert request["scheduler"] is None
    assert (request["prompt_2"], request["negative_prompt_2"]) == ("eeff"[index], "g")
    parsed = parse_request(request)
    assert (parsed.num_images_per_prompt, parsed.metadata, parsed.deadline_s) == (1, {}, None)


@pytest.mark.parametrize("field", ["latents", "pooled_prompt_embeds"])
def test_an_image_of_shared_tensors_is_refused(tmp_path: Path, field: str) -> None:
    """An image of tensors that it shares with other images of its request is refused by field."""
    given = {field: {"s3": "a.safetensors"}}
    with pytest.raises(InvalidRequest, match=field):
        request_sources.from_image_file(png(tmp_path, 1, seed=2, **given))


def test_an_image_made_from_a_picture_is_requested_again(tmp_path: Path) -> None:
    """An image made from a picture is requested from it again, in its size, with its strength."""
    given = {
        "image": {"s3": "a.png"}, "mask_image": {"s3": "b.png"}, "strength": 0.5, "width": 72,
        "sag_blur_sigma": 2.0, "sag_start": 0.0, "sag_stop": 0.5, "guidance_rescale": 0.0,
        "loras": [{"name": "ink", "scale": -0.5}],
    }  # fmt: skip
    request = request_sources.from_image_file(png(tmp_path, 3, seed=4, **given))
    kept = {name: value for name, value in given.items() if value != 0.0}
    assert {name: request.get(name) for name in given} == kept | {
        "sag_start": None, "guidance_rescale": None
    }  # fmt: skip
    assert parse_request(request).strength == 0.5


@pytest.mark.parametrize("labels", [[2, 0], 2, None])
def test_an_image_of_a_class_or_of_none_is_requested_again(
    tmp_path: Path, settings: Settings, labels: list[int] | int | None
) -> None:
    """Null is sent again, since a request that leaves it out is refused."""
    spec = ModelSpec(path="p", safety_checker=False, null_class=9)
    own = settings.model_copy(update={"models": {"default": spec}})
    (sent,) = request_sources.with_flags(
        [{}], {"seed": 5, "num_inference_steps": 3}, [f"class_labels={json.dumps(labels)}"]
    )
    assert sent["class_labels"] == labels
    first = ResolvedRequest.of(parse_request(sent), "t", own)
    assert first.origin["class_labels"] == labels
    origin = {"request": first.origin, "parameters": first.parameters, "index": 0, "seed": 5}
    path = written(tmp_path, origin)
    again = ResolvedRequest.of(parse_request(request_sources.from_image_file(path)), "t", own)
    alone = labels[0] if isinstance(labels, list) else labels
    assert again.parameters == first.parameters | {"class_labels": alone}


def test_a_foreign_image_is_named(tmp_path: Path) -> None:
    """A foreign image is named, be it without the text chunk, no image at all or missing."""
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text(json.dumps({}))
    for name in ("other.png", "text.png", "missing.png"):
        with pytest.raises(InvalidRequest, match=name):
            request_sources.from_image_file(tmp_path / name)
