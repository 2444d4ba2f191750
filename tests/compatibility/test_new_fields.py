"""Fields that were added to version 1 of the contract, beside a worker that does not know them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationRequest
from api_contracts.parse import parse_request
from worker.cli import request_sources
from worker.execution import image_files

if TYPE_CHECKING:
    from pathlib import Path

_PICTURE, _TENSOR = {"s3": "a.png"}, {"s3": "a.safetensors"}
#: Each new field in a request that is valid today; the first field is the new one.
ADDED: tuple[dict[str, Any], ...] = (
    {"image": _PICTURE, "prompt": "x"},
    {"strength": 0.5, "image": _PICTURE, "prompt": "x"},
    {"mask_image": _PICTURE, "image": _PICTURE, "prompt": "x"},
    {"sag_blur_sigma": 2.0, "prompt": "x"},
    {"sag_mask_threshold": 0.5, "prompt": "x"},
    {"sag_start": 0.1, "prompt": "x"},
    {"sag_stop": 0.9, "prompt": "x"},
    {"guidance_rescale": 0.7, "prompt": "x"},
    {"prompt_2": "y", "prompt": "x"},
    {"negative_prompt_2": "y", "negative_prompt": "z", "prompt": "x"},
    {"pooled_prompt_embeds": _TENSOR, "prompt_embeds": _TENSOR},
    {
        "negative_pooled_prompt_embeds": _TENSOR,
        "negative_prompt_embeds": _TENSOR,
        "prompt": "x",
    },
    {"original_size": [64, 64], "prompt": "x"},
    {"crops_coords_top_left": [0, 0], "prompt": "x"},
    {"target_size": [64, 64], "prompt": "x"},
    {"class_labels": None, "prompt": "x"},
    {"loras": [{"name": "ink", "scale": 0.5}], "prompt": "x"},
)
#: The previous version's parser: the faults of each request on standard input, None without any.
PARSER = """
import json, sys
import api_contracts
from api_contracts import GenerationRequest, InvalidRequest
from api_contracts.parse import parse_request
assert api_contracts.__file__.startswith(sys.argv[1]), api_contracts.__file__
answers = []
for request in json.load(sys.stdin):
    try:
        parse_request(request)
        answers.append(None)
    except InvalidRequest as error:
        answers.append([fault.model_dump() for fault in error.faults])
print(json.dumps({"answers": answers, "fields": [*GenerationRequest.model_fields]}))
"""


def asked(previous: Path, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """What the previous version's parser says of requests, and the fields that it knows."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PARSER, str(previous)],
        env={**os.environ, "PYTHONPATH": str(previous)},
        input=json.dumps(requests), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_worker_that_does_not_know_a_field_refuses_it_by_name(previous: Path) -> None:
    """No field is ignored: the previous parser names each that was added since."""
    for request in ADDED:
        assert parse_request(request).to_wire() == request
    said = asked(previous, [*ADDED])
    new = {next(iter(request)) for request in ADDED}
    assert new == {*GenerationRequest.model_fields} - {*said["fields"]}
    for request, faults in zip(ADDED, said["answers"], strict=True):
        refused = {fault["where"]: fault["limit"] for fault in faults}
        assert refused[next(iter(request))] == "extra_forbidden"
        assert set(refused) <= new


@pytest.mark.parametrize("fields", [{}, {"image": None, "original_size": None}])
def test_a_request_without_them_is_taken_by_both(previous: Path, fields: dict[str, Any]) -> None:
    """What a client sends has only the fields that were set; null is set."""
    request = GenerationRequest(prompt="x", seed=5, **fields).to_wire()
    (answer,) = asked(previous, [request])["answers"]
    assert (answer is None) is (fields == {})


def test_a_picture_without_them_is_requested_from_both(previous: Path, tmp_path: Path) -> None:
    """`submit --from-image` leaves out the defaults that the picture's parameters contain."""
    from PIL import Image

    parameters = GenerationRequest(prompt="x", seed=[5]).model_dump(mode="json")
    origin = {"request": {"prompt": "x"}, "parameters": parameters, "index": 0, "seed": 5}
    made: Any = type("Made", (), {"pixels": Image.new("RGB", (8, 8))})
    path = tmp_path / "made.png"
    path.write_bytes(image_files.encode(made, "png", origin))
    request = request_sources.from_image_file(path)
    assert parse_request(request).seed == 5
    assert asked(previous, [request])["answers"] == [None]
