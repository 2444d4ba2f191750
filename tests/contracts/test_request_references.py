"""References in a request, and the place that an error names."""

from __future__ import annotations

import pytest

from api_contracts.request_types import MAX_SEED
from tests.contracts.field_values import NAN, PICTURE, faults_of

HOSTILE_KEYS = (
    "", "a", "a.pt", "a.safetensors.pt", "/a.safetensors", "../a.safetensors",
    "a/../b.safetensors", "./a.safetensors", "a//b.safetensors", "a\\..\\b.safetensors",
    "%2e%2e/a.safetensors", "s3://other/a.safetensors", "a.safetensors\n", "\na.safetensors",
    "a\x00.safetensors", "a b.safetensors", "a?versionId=1.safetensors", ".safetensors",
    "a/.safetensors", "\u00e4.safetensors", "a" * 501 + ".safetensors", "\ud800.safetensors",
)  # fmt: skip
#: The same with the ending of a picture, and other endings.
HOSTILE_PICTURES = (
    *(key.replace(".safetensors", ".png") for key in HOSTILE_KEYS if len(key) < 500),
    "a" * 509 + ".png",
    "a.safetensors", "a.gif", "a.JPE", "a.GIF", "a.png.exe", "a.png/b", "a.jpe", "a.svg", "a_png",
)  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE_KEYS)
@pytest.mark.parametrize("field", ["latents", "negative_prompt_embeds"])
def test_a_reference_names_nothing_outside_its_prefix(field: str, key: str) -> None:
    """A reference's key is a plain relative path to a `.safetensors` file."""
    assert set(faults_of({"prompt": "x", field: {"s3": key}})) == {f"{field}.s3"}


@pytest.mark.parametrize("key", HOSTILE_PICTURES)
@pytest.mark.parametrize("field", ["image", "mask_image"])
def test_a_picture_is_below_its_prefix_too(field: str, key: str) -> None:
    """A picture's key is a plain relative path to a `.png`, `.jpg`, `.jpeg` or `.webp` file."""
    data = {"prompt": "x", "image": PICTURE, field: {"s3": key}}
    assert set(faults_of(data)) == {f"{field}.s3"}


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"latents": {"s3": "a.safetensors", "bucket": "other"}}, "latents.bucket"),
        ({"latents": {}}, "latents.s3"),
        ({"cross_attention_kwargs": {"scale": 11}}, "cross_attention_kwargs.scale"),
        ({"cross_attention_kwargs": {"gligen": {}}}, "cross_attention_kwargs.gligen"),
        ({"loras": [{"name": "a", "scale": 10.5}]}, "loras[0].scale"),
        ({"loras": [{"name": "a", "scale": NAN}]}, "loras[0].scale"),
        ({"loras": [{"name": "a"}, {"name": "b", "scale": "1"}]}, "loras[1].scale"),
        ({"loras": [{"name": "../a"}]}, "loras[0].name"),
        ({"loras": [{"name": "-a"}]}, "loras[0].name"),
        ({"loras": [{"name": "a" * 65}]}, "loras[0].name"),
        ({"loras": [{"scale": 1}]}, "loras[0].name"),
        ({"loras": [{"name": "a", "path": "/b"}]}, "loras[0].path"),
        ({"loras": [{"name": f"a{number}"} for number in range(9)]}, "loras"),
        ({"loras": {"name": "a"}}, "loras"),
        ({"prompt": ["x", 5]}, "prompt[1]"),
        ({"prompt": ["x", "\ud800"]}, "prompt[1]"),
        ({"negative_prompt": [5]}, "negative_prompt[0]"),
        ({"seed": [0, 1, True]}, "seed[2]"),
        ({"prompt_2": ["x", 5]}, "prompt_2[1]"),
        ({"negative_prompt_2": [5]}, "negative_prompt_2[0]"),
        ({"image": {"s3": "a.png", "bucket": "other"}}, "image.bucket"),
        ({"original_size": [0, 64]}, "original_size[0]"),
        ({"target_size": [64, 16_385]}, "target_size[1]"),
        ({"crops_coords_top_left": [-1, 0]}, "crops_coords_top_left[0]"),
        ({"target_size": [64, 64.0]}, "target_size[1]"),
        ({"seed": [MAX_SEED + 1]}, "seed[0]"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {"one": 1}}, "metadata.one"),
        ({"guidance": 3.0}, "guidance"),
        ({"one": 1}, "one"),
        ({"many": 1}, "many"),
        ({"__class__": 1}, "__class__"),
    ],
)
def test_a_fault_says_where(data: dict[str, object], where: str) -> None:
    """An error names the exact place inside a list, reference or object, or the unknown field."""
    assert set(faults_of({"prompt": "x", **data})) == {where}


@pytest.mark.parametrize("data", [None, 5, "x", [], [{}], True])
def test_a_request_is_an_object(data: object) -> None:
    """A request that is not a JSON object is one error of the whole request."""
    assert faults_of(data) == {"request": "object"}
