"""Conflicts between fields, limits of a worker, and how errors are reported."""

from __future__ import annotations

import json
import pickle

import pytest

from api_contracts import InvalidRequest, Limits
from api_contracts.parse import parse_request
from api_contracts.request_types import MAX_METADATA_BYTES, MAX_SEED

EMBEDS = {"s3": "a.safetensors"}
PICTURE = {"s3": "a.png"}
#: Python and JSON refuse longer numbers as text.
LONGEST_INT = 10**4299


def refused(data: dict[str, object], limits: Limits | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(data, limits)
    return caught.value


def wheres(data: dict[str, object], limits: Limits | None = None) -> list[str]:
    return sorted(fault.where for fault in refused(data, limits).faults)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "prompt_embeds": EMBEDS}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x", "class_labels": 3}, "prompt"),
        ({"prompt_embeds": EMBEDS, "class_labels": [3]}, "prompt"),
        ({"class_labels": [3, 4], "seed": [1]}, "seed"),
        ({"prompt": "x", "loras": [{"name": "a"}, {"name": "a"}]}, "loras[1].name"),
        (
            {"prompt": "x", "negative_prompt": "", "negative_prompt_embeds": EMBEDS},
            "negative_prompt",
        ),
        ({"prompt": "x", "negative_prompt": ["a", "b"]}, "negative_prompt"),
        ({"prompt": ["x", "y", "z"], "negative_prompt": ["a", "b"]}, "negative_prompt"),
        ({"prompt": "x", "seed": [1, 2]}, "seed"),
        ({"prompt": ["x", "y"], "num_images_per_prompt": 2, "seed": [1, 2]}, "seed"),
        ({"prompt": "x", "num_images_per_prompt": 2, "seed": MAX_SEED}, "seed"),
        ({"prompt": ["x", "y"], "seed": MAX_SEED}, "seed"),
        ({"prompt": "x", "eta": 0.1, "scheduler": "euler"}, "eta"),
        ({"prompt": "x", "metadata": {"k": "\U0001f34c" * 1024}}, "metadata"),
        ({"prompt": "x", "strength": 0.8}, "strength"),
        ({"prompt": "x", "image": None, "strength": 0.5}, "strength"),
        ({"prompt": "x", "mask_image": PICTURE}, "mask_image"),
        ({"prompt": "x", "image": PICTURE, "latents": EMBEDS}, "latents"),
        ({"prompt": "x", "sag_start": 1.0}, "sag_start"),
        ({"prompt": "x", "sag_stop": 0.0}, "sag_start"),
        ({"prompt": "x", "sag_start": 0.5, "sag_stop": 0.5}, "sag_start"),
        ({"prompt": "x", "sag_start": 0.6, "sag_stop": 0.5}, "sag_start"),
        ({"prompt": "x", "guidance_rescale": 0.1, "guidance_scale": 1.0}, "guidance_rescale"),
        ({"prompt": "x", "pooled_prompt_embeds": EMBEDS}, "pooled_prompt_embeds"),
        (
            {"prompt": "x", "negative_prompt": "y", "negative_pooled_prompt_embeds": EMBEDS},
            "negative_pooled_prompt_embeds",
        ),
        ({"prompt_embeds": EMBEDS, "prompt_2": "x"}, "prompt_2"),
        ({"prompt": "x", "prompt_2": ["a", "b"]}, "prompt_2"),
        ({"prompt": "x", "negative_prompt_2": "y"}, "negative_prompt_2"),
        (
            {"prompt": "x", "negative_prompt_embeds": EMBEDS, "negative_prompt_2": "y"},
            "negative_prompt_2",
        ),
        (
            {"prompt": ["x", "y"], "negative_prompt": "a", "negative_prompt_2": ["a", "b", "c"]},
            "negative_prompt_2",
        ),
    ],
)
def test_fields_that_contradict_each_other(data: dict[str, object], where: str) -> None:
    """Two fields that are valid alone but conflict are an error."""
    assert wheres(data) == [where]


@pytest.mark.parametrize(
    "data",
    [
        {"prompt": ["x", "y"], "negative_prompt": "one for all"},
        {"prompt": ["x", "y"], "negative_prompt": ["a", "b"]},
        {"prompt": ["x", "y"], "num_images_per_prompt": 2, "seed": [1, 2, 3, 4]},
        {"prompt": ["x", "y"], "seed": MAX_SEED - 1},
        {"prompt": "x", "eta": 1.0, "scheduler": "ddim"},
        {"prompt": "x", "eta": 1.0, "scheduler": "tcd"},
        {"prompt": "x", "eta": 1.0},
        {"prompt": "x", "eta": 0.0, "scheduler": "euler"},
        {"prompt": "x", "negative_prompt_embeds": EMBEDS},
        {"prompt": "x", "image": PICTURE},
        {"prompt": "x", "image": PICTURE, "mask_image": PICTURE, "strength": 1.0, "height": 64},
        {"prompt": "x", "mask_image": None, "image": None, "latents": EMBEDS},
        {"prompt": "x", "sag_start": 0.5, "sag_stop": 0.501},
        {"prompt": "x", "guidance_rescale": 0.7},
        {"prompt": "x", "guidance_rescale": 0.7, "guidance_scale": 1.001},
        {"prompt": "x", "guidance_rescale": 0.0, "guidance_scale": 1.0},
        {"prompt": ["x", "y"], "prompt_2": "one for all"},
        {"prompt": ["x", "y"], "prompt_2": ["a", "b"]},
        {"prompt": ["x", "y"], "negative_prompt": "a", "negative_prompt_2": ["a", "b"]},
        {"prompt_embeds": EMBEDS, "negative_prompt": "a", "negative_prompt_2": ["a", "b"]},
        {"prompt_embeds": EMBEDS, "pooled_prompt_embeds": EMBEDS},
        {"prompt": "x", "original_size": [1024, 512], "crops_coords_top_left": [0, 0]},
    ],
)
def test_fields_that_agree(data: dict[str, object]) -> None:
    """Values that fit together are accepted, up to the limit."""
    assert parse_request(data).to_wire() == data


@pytest.mark.parametrize("text", ["v", "\u00e9", "\U0001f34c"])
def test_metadata_is_measured_in_bytes(text: str) -> None:
    """The limit of metadata is on the bytes of its UTF-8 JSON."""
    room = MAX_METADATA_BYTES - len(json.dumps({"k": ""}))
    fits = text * (room // len(text.encode()))
    assert parse_request({"prompt": "x", "metadata": {"k": fits}}).metadata == {"k": fits}
    assert wheres({"prompt": "x", "metadata": {"k": fits + text}}) == ["metadata"]


@pytest.mark.parametrize("metadata", [{"k": "\ud800"}, {"\ud800": "v"}])
def test_metadata_that_is_no_text_is_refused(metadata: dict[str, str]) -> None:
    r"""A lone surrogate, which JSON can carry as `\ud800`, is an error like any other."""
    data = json.loads(json.dumps({"prompt": "x", "metadata": metadata}))
    assert wheres(data)[0].startswith("metadata")


def test_limits_of_a_worker_hold_on_top() -> None:
    """A worker's limits refuse exactly the values above them."""
    limits = Limits(max_side_px=128, max_steps=10, max_images=4)
    edge = {
        "prompt": ["x", "y"], "height": 128, "width": 128, "num_inference_steps": 10,
        "num_images_per_prompt": 2,
    }  # fmt: skip
    assert parse_request(edge, limits).to_wire() == edge
    past = {
        "prompt": ["x", "y"], "height": 136, "width": 136, "num_inference_steps": 11,
        "num_images_per_prompt": 3,
    }  # fmt: skip
    assert parse_request(past).to_wire() == past
    expected = ["height", "num_images_per_prompt", "num_inference_steps", "width"]
    assert wheres(past, limits) == expected
    assert all(fault.limit for fault in refused(past, limits).faults)


def test_all_faults_come_at_once() -> None:
    """The first answer names every invalid field."""
    broken: dict[str, object] = {
        "prompt": "x" * 2001, "height": 65, "seed": [-1, "a"], "eta": 2, "scheduler": "DDIM",
        "latents": {"s3": "../a"}, "metadata": {"k": 1}, "unknown": 0, "num_inference_steps": 0,
    }  # fmt: skip
    assert wheres(broken) == [
        "eta", "height", "latents.s3", "metadata.k", "num_inference_steps", "prompt",
        "scheduler", "seed[0]", "seed[1]", "unknown",
    ]  # fmt: skip
    together: dict[str, object] = {
        "negative_prompt": ["a"], "prompt": ["x", "y"], "seed": [1], "eta": 1,
        "scheduler": "euler", "height": 2048,
    }  # fmt: skip
    assert wheres(together, Limits()) == ["eta", "height", "negative_prompt", "seed"]


@pytest.mark.parametrize(
    "data",
    [
        {"prompt": "x" * 10_000_000},
        {"prompt": "x", "scheduler": "x" * 10_000_000},
        {"prompt": "x", "x" * 10_000_000: 1},
        {"prompt": "x", "metadata": {"x" * 10_000_000: 1}},
        {"prompt": "x", "metadata": {"k": "x" * 10_000_000}},
        {"prompt": "x", "latents": {"s3": "x" * 10_000_000}},
        {"prompt": "x", "seed": [-1] * 1_000_000},
        {"prompt": "x", **{f"unknown{number}": 1 for number in range(10_000)}},
        {"prompt": "x", "seed": LONGEST_INT},
        {"prompt": "x", "num_images_per_prompt": LONGEST_INT},
        {"prompt": ["x"] * 64, "num_images_per_prompt": LONGEST_INT},
        {"prompt": ["x"] * 64, "num_images_per_prompt": LONGEST_INT, "seed": [1]},
        {"prompt": "x", "num_inference_steps": LONGEST_INT},
        {"prompt": "x", "height": LONGEST_INT * 8},
    ],
    ids=lambda data: "-".join(data)[:30],
)
def test_a_huge_value_gives_a_short_message(data: dict[str, object]) -> None:
    """An error message stays short, whatever the size of the refused value."""
    refusal = refused(data, Limits())
    assert len(str(refusal)) < 5_000
    dumped = [fault.model_dump_json() for fault in refusal.faults]
    assert max(map(len, dumped)) < 1_000


@pytest.mark.parametrize("where", ["request", "metadata", "latents", "unknown"])
def test_an_object_with_too_many_entries_is_one_error(where: str) -> None:
    """More entries than any field allows are refused before each of them costs an error."""
    entries = {f"unknown{number}": "x" for number in range(601)}
    data = entries if where == "request" else {where: entries}
    (fault,) = refused({"prompt": "x", **data}).faults
    assert (fault.where, fault.limit) == (where, "<= 600 entries")


def test_an_integer_too_long_to_print_is_refused() -> None:
    """An integer that Python can't print is refused as any other."""
    assert wheres({"prompt": "x", "seed": 10**5000}) == ["seed"]


def test_wire_keeps_only_what_was_set() -> None:
    """Fields that were left out stay out, so that the model's defaults apply."""
    given = {"prompt": "x", "guidance_scale": 7.5, "height": None, "metadata": {"a": "b"}}
    request = parse_request(given)
    assert request.to_wire() == given
    assert parse_request(json.loads(json.dumps(request.to_wire()))) == request


def test_a_refusal_can_be_pickled() -> None:
    """An `InvalidRequest` keeps its class, text and errors when pickled."""
    error = refused({"prompt": 5, "seed": -1})
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.faults) == (InvalidRequest, str(error), error.faults)
