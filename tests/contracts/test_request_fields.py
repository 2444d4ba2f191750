"""Each field of the request: its default, and its limits from both sides."""

from __future__ import annotations

from typing import Any

import pytest

from api_contracts import GenerationRequest
from api_contracts.parse import parse_request
from api_contracts.request_types import MAX_SEED
from tests.contracts.field_values import EMBEDS, INF, NAN, PICTURE, faults_of

DEFAULTS: dict[str, Any] = {
    "schema_version": 1,
    "model": "default",
    "prompt": None,
    "negative_prompt": None,
    "prompt_2": None,
    "negative_prompt_2": None,
    "height": None,
    "width": None,
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "sag_scale": 0.75,
    "sag_blur_sigma": 1.0,
    "sag_mask_threshold": 1.0,
    "sag_start": 0.0,
    "sag_stop": 1.0,
    "guidance_rescale": 0.0,
    "num_images_per_prompt": 1,
    "eta": 0.0,
    "seed": None,
    "image": None,
    "strength": 0.8,
    "mask_image": None,
    "latents": None,
    "prompt_embeds": None,
    "negative_prompt_embeds": None,
    "pooled_prompt_embeds": None,
    "negative_pooled_prompt_embeds": None,
    "original_size": None,
    "crops_coords_top_left": None,
    "target_size": None,
    "class_labels": None,
    "scheduler": None,
    "clip_skip": None,
    "cross_attention_kwargs": None,
    "loras": None,
    "output_type": "png",
    "callback_steps": 1,
    "preview_every": 0,
    "deadline_s": None,
    "priority": 5,
    "metadata": {},
    "reply_to": None,
    "webhook": None,
    "traceparent": None,
}
#: What a field needs beside it, in place of a prompt alone.
NEEDS: dict[str, dict[str, Any]] = {
    "negative_prompt_2": {"prompt": "x", "negative_prompt": "y"},
    "class_labels": {"num_inference_steps": 5},
    "strength": {"prompt": "x", "image": PICTURE},
    "mask_image": {"prompt": "x", "image": PICTURE},
    "pooled_prompt_embeds": {"prompt_embeds": EMBEDS},
    "negative_pooled_prompt_embeds": {"prompt": "x", "negative_prompt_embeds": EMBEDS},
}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def each(field: str, *values: object) -> list[tuple[str, object]]:
    return [(field, value) for value in values]


GOOD: list[tuple[str, Any]] = [
    ("schema_version", 1),
    *each("model", "a", "9", "sd-1.5_x", "a" * 64),
    *each("prompt", "", [""], "x", "x" * 2000, "\x00", "\U0001f34c", ["x"], ["x"] * 64),
    *each("negative_prompt", "", "x" * 2000, ["x"], None),
    *each("height", 64, 72, 1024, None),
    *each("width", 64, 72, 1024, None),
    *each("num_inference_steps", 1, 150),
    *each("guidance_scale", 0, 0.0, 1, 50, 50.0),
    *each("sag_scale", 0, 10, 10.0),
    *each("prompt_2", "", "x" * 2000, ["x"], None),
    *each("negative_prompt_2", "", "x" * 2000, ["x"], None),
    *each("sag_blur_sigma", 0.1, 1, 10, 10.0),
    *each("sag_mask_threshold", 0, 0.0, 4, 4.0),
    *each("sag_start", 0, 0.999),
    *each("sag_stop", 1e-9, 1, 1.0),
    *each("guidance_rescale", 0, 0.7, 1, 1.0),
    *each("strength", 1e-9, 0.8, 1, 1.0),
    *each("image", {"s3": "a.png"}, {"s3": "a/b-c/d_e.1.jpeg"}, {"s3": "a.jpg"}, None),
    *each("image", {"s3": "DCIM/IMG_1.JPG"}, {"s3": "a.Jpeg"}, {"s3": "a.PNG"}),
    *each("mask_image", {"s3": "A.WEBP"}, {"s3": "a.WebP"}, {"s3": "A.JPEG"}),
    *each("image", {"s3": "a.webp"}, {"s3": "a" * 508 + ".png"}),
    *each("mask_image", {"s3": "a.png"}, {"s3": "a" * 507 + ".webp"}, None),
    *each("pooled_prompt_embeds", {"s3": "a.safetensors"}, None),
    *each("negative_pooled_prompt_embeds", {"s3": "a.safetensors"}, None),
    *each("original_size", [1, 16_384], [16_384, 1], None),
    *each("crops_coords_top_left", [0, 16_384], [16_384, 0], None),
    *each("target_size", [1, 16_384], [16_384, 1], None),
    *each("class_labels", 0, 999_999, [3], [0, 0], None),
    *each("num_images_per_prompt", 1, 4),
    *each("eta", 0, 1, 1.0),
    *each("seed", 0, MAX_SEED, [0], [MAX_SEED], None),
    *each("scheduler", "ddim", "dpmpp_2m_karras", "a" * 32, None),
    *each("clip_skip", 0, 32, None),
    *each("cross_attention_kwargs", {}, {"scale": 0}, {"scale": 10}, None),
    *each("loras", [], [{"name": "a"}], [{"name": "A_b-9" * 12, "scale": None}], None),
    *each("loras", [{"name": "a", "scale": -10}, {"name": "b", "scale": 10.0}]),
    *each("loras", [{"name": f"a{number}", "scale": 0} for number in range(8)]),
    *each("output_type", "png", "jpeg", "webp", "npy", "latent"),
    ("callback_steps", 1),
    ("preview_every", 0),
    *each("deadline_s", 1e-9, 1, 86_400.0, None),
    *each("priority", 0, 9),
    *each("metadata", {}, {"": ""}, {"k": "v" * 4087}),
    *each("webhook", "https://a.b/c?d=e", "http://a:65535", "https://[::1]:8443/", None),
    *each("traceparent", TRACE, None),
    *each("latents", {"s3": "a.safetensors"}, {"s3": "a/b-c/d_e.1.safetensors"}),
    ("latents", {"s3": "a" * 500 + ".safetensors"}),
]
BAD: list[tuple[str, Any]] = [
    *each("schema_version", 0, 2, 1.0, "1", True, None),
    *each("model", "", "A", "-a", "a/b", "../a", "a\n", "a" * 65, None, 1),
    *each("prompt", "x" * 2001, 5, {}, [], ["x"] * 65, "\ud800"),
    *each("negative_prompt", "x" * 2001, 5, [], "\udfff"),
    *each("height", 0, 56, 63, 65, -64, 64.0, "64", True),
    *each("width", 0, 56, 63, 65, -64, 64.0, "64", True),
    *each("num_inference_steps", 0, -1, 1.0, "50", True, None, NAN),
    *each("guidance_scale", -0.001, 50.001, NAN, INF, -INF, "7.5", True, None),
    *each("sag_scale", -0.001, 10.001, NAN, INF, "1", True, None),
    *each("num_images_per_prompt", 0, -1, 1.5, "1", True, None),
    *each("eta", -0.001, 1.001, NAN, INF, "0", True, None),
    *each("seed", -1, MAX_SEED + 1, 1.0, "1", True, [], NAN),
    *each("scheduler", "", "DDIM", "a" * 33, "ddim\n", "os.system", 1),
    *each("clip_skip", -1, 33, "1", True),
    *each("output_type", "", "pil", "PNG", None, [], "\ud800"),
    *each("prompt_2", "x" * 2001, 5, [], ["x"] * 65, "\ud800"),
    *each("negative_prompt_2", "x" * 2001, 5, [], "\udfff"),
    *each("sag_blur_sigma", 0.099, 10.001, 0, NAN, INF, "1", True, None),
    *each("sag_mask_threshold", -0.001, 4.001, NAN, INF, "1", True, None),
    *each("sag_start", -0.001, 1.001, NAN, INF, "0", True, None),
    *each("sag_stop", -0.001, 1.001, NAN, INF, "1", True, None),
    *each("guidance_rescale", -0.001, 1.001, NAN, INF, "0", True, None),
    *each("strength", 0, 0.0, -0.001, 1.001, NAN, INF, "1", True, None),
    *each("image", "a.png", 5, [], [PICTURE]),
    *each("mask_image", "a.png", 5, [], [PICTURE]),
    *each("pooled_prompt_embeds", "a.safetensors", 5),
    *each("negative_pooled_prompt_embeds", "a.safetensors", []),
    *each("original_size", [], [1], [1, 1, 1], 5, "1x1", {"height": 1}),
    *each("crops_coords_top_left", [], [0], [0, 0, 0], 0, "0"),
    *each("target_size", [], [1], [1, 1, 1], 5, "1x1", True),
    *each("class_labels", -1, 1_000_000, 1.0, "3", True, [], [0] * 65),
    *each("callback_steps", 0, -1, "1", True, None),
    *each("preview_every", -1, "1", True, None),
    *each("deadline_s", 0, -1, NAN, INF, "1", True),
    *each("priority", -1, 10, 5.0, "5", True, None),
    *each("metadata", [], "x", None, {"k": "v" * 4088}),
    *each("webhook", "", "a.b", "ftp://a/", "https://a:b@c/", "https://a/ b", 1),
    *each("webhook", "http://[", "http://[:::]/", "https://a]b/", "http://[1.2.3.4]/"),
    *each("webhook", "http://a:0/", "http://a:65536/", "http://a/" + "b" * 2000),
    *each("traceparent", "", TRACE.upper(), TRACE + "\n", TRACE[:-1], 1),
    *each("latents", "a.safetensors"),
    *each("prompt_embeds", "a.safetensors", 5),
    *each("negative_prompt_embeds", "a.safetensors", []),
]  # fmt: skip


def test_every_default_is_the_published_one() -> None:
    """An empty request has the published defaults, and there is no other field."""
    assert GenerationRequest().model_dump() == DEFAULTS


@pytest.mark.parametrize(("field", "value"), GOOD)
def test_a_value_at_the_limit_is_taken(field: str, value: object) -> None:
    """A value at its limit is accepted and unchanged."""
    data = NEEDS.get(field, {"prompt": "x"}) | {field: value}
    assert parse_request(data).to_wire() == data


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_value_past_the_limit_is_refused(field: str, value: object) -> None:
    """A value outside its limits, or of another JSON type, is one error at that field."""
    assert set(faults_of(NEEDS.get(field, {"prompt": "x"}) | {field: value})) == {field}


def test_embeddings_stand_for_a_prompt() -> None:
    """`prompt_embeds` without `prompt` is a valid request without prompts."""
    assert parse_request({"prompt_embeds": EMBEDS}).prompts == ()


def test_an_empty_second_prompt_is_none() -> None:
    """For `""` and null the second encoder gets the first prompt; `[""]` is a prompt of its own."""
    for empty in ("", None):
        request = GenerationRequest(
            prompt="x", negative_prompt="y", prompt_2=empty, negative_prompt_2=empty
        )
        assert request.prompts_2 == request.negative_prompts_2 == ()
    assert GenerationRequest(prompt="x", prompt_2=[""]).prompts_2 == ("",)
