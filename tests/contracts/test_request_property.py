"""Laws that hold for every possible request."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from api_contracts import GenerationRequest, InvalidRequest, Limits
from api_contracts.parse import parse_request
from api_contracts.request_types import MAX_SEED

FIELDS = sorted(GenerationRequest.model_fields)
#: Lone surrogates too: JSON can carry them.
TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT | st.sampled_from(["s3", "scale", "one", "many"]), inner, max_size=4)
    ),
    max_leaves=8,
)
NEAR = st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON, max_size=6)

CLEAN = st.text(min_size=1, max_size=10)
REFERENCE = st.fixed_dictionaries(
    {"s3": st.from_regex(r"\A[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}\.safetensors\Z")}
)
PICTURE = st.fixed_dictionaries(
    {"s3": st.from_regex(r"\A[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}\.(png|jpg|jpeg|webp)\Z")}
)
LORA = st.fixed_dictionaries(
    {"name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,9}\Z")},
    optional={"scale": st.floats(-10, 10) | st.none()},
)
SIZE = st.lists(st.integers(1, 16_384), min_size=2, max_size=2)
SIDE = st.integers(8, 400).map(lambda eighth: eighth * 8)
ALONE = st.fixed_dictionaries(
    {"prompt": CLEAN | st.lists(CLEAN, min_size=1, max_size=3)},
    optional={
        "model": st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,63}\Z"),
        "negative_prompt": st.text(max_size=10) | st.none(),
        "height": SIDE,
        "width": SIDE | st.none(),
        "num_inference_steps": st.integers(1, 1000),
        "guidance_scale": st.floats(0, 50) | st.integers(0, 50),
        "sag_scale": st.floats(0, 10),
        "num_images_per_prompt": st.integers(1, 8),
        "seed": st.integers(0, MAX_SEED - 24),
        "prompt_2": CLEAN | st.none(),
        "sag_blur_sigma": st.floats(0.1, 10),
        "sag_mask_threshold": st.floats(0, 4),
        "sag_start": st.floats(0, 0.4),
        "sag_stop": st.floats(0.5, 1),
        "original_size": SIZE | st.none(),
        "crops_coords_top_left": st.just([0, 8]) | st.none(),
        "target_size": SIZE | st.none(),
        "negative_prompt_embeds": st.none(),
        "scheduler": st.sampled_from(["ddim", "euler_a", None]),
        "clip_skip": st.integers(0, 32),
        "cross_attention_kwargs": st.fixed_dictionaries({"scale": st.floats(0, 10)}),
        "loras": st.lists(LORA, max_size=8, unique_by=lambda each: each["name"]) | st.none(),
        "output_type": st.sampled_from(["png", "jpeg", "webp", "npy", "latent"]),
        "callback_steps": st.integers(1, 1000),
        "preview_every": st.integers(0, 1000),
        "deadline_s": st.floats(0.001, 1e9) | st.none(),
        "priority": st.integers(0, 9),
        "metadata": st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=5),
    },
)
#: Fields that need each other, or exclude each other.
TOGETHER: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"latents": REFERENCE | st.none()}),
    st.fixed_dictionaries(
        {"image": PICTURE},
        optional={
            "mask_image": PICTURE | st.none(),
            "strength": st.floats(0, 1, exclude_min=True),
            "latents": st.none(),
        },
    ),
    st.fixed_dictionaries(
        {"guidance_scale": st.floats(1, 50, exclude_min=True), "guidance_rescale": st.floats(0, 1)}
    ),
)
VALID = st.builds(lambda alone, together: alone | together, ALONE, TOGETHER)


def refusal(data: Any) -> InvalidRequest | None:
    try:
        parse_request(data, Limits())
    except InvalidRequest as refused:
        return refused
    return None


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=JSON | NEAR)
@example(data={"prompt": "x", "metadata": {"k": "\ud800"}})
@example(data={"\ud800": 1})
def test_any_json_parses_or_is_refused_with_a_reason(data: Any) -> None:
    """Any JSON is a valid request or raises `InvalidRequest` with an error."""
    refused = refusal(data)
    if refused is None:
        wire = parse_request(data, Limits()).to_wire()
        assert json.loads(json.dumps(wire)).keys() == data.keys()
    else:
        assert refused.faults
        assert all(fault.where and fault.what and fault.limit for fault in refused.faults)
        assert all(fault.model_dump_json() for fault in refused.faults)
        assert str(refused).encode()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=VALID)
def test_a_valid_request_travels_unchanged(data: dict[str, Any]) -> None:
    """A valid request survives the way over the wire unchanged."""
    request = parse_request(data)
    wire = request.to_wire()
    assert wire == data
    assert parse_request(json.loads(json.dumps(wire))) == request
    assert GenerationRequest.model_validate_json(request.model_dump_json()) == request
