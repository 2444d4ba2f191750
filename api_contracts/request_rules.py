"""Rules over several fields of a request, and the limits of a worker.

Each rule yields what is wrong, with the field and its limit; none changes the request.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from api_contracts.errors import FieldError
from api_contracts.request import ETA_SCHEDULERS, GenerationRequest, Limits
from api_contracts.request_types import MAX_METADATA_BYTES, MAX_SEED

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Fields that mean something only where another one is set.
_ONLY_WITH = {
    "strength": "image",
    "mask_image": "image",
    "pooled_prompt_embeds": "prompt_embeds",
    "negative_pooled_prompt_embeds": "negative_prompt_embeds",
    "prompt_2": "prompt",
    "negative_prompt_2": "negative_prompt",
}
#: Pairs of fields of which a request has one at most.
_NOT_BOTH = (
    ("negative_prompt", "negative_prompt_embeds"),
    ("latents", "image"),
)
#: Texts that may be one for all prompts.
_AS_MANY = ("negative_prompt", "prompt_2", "negative_prompt_2")


def conflicts(request: GenerationRequest) -> Iterator[FieldError]:
    """Fields that are valid alone, but not together."""
    subjects = (request.prompts, request.prompt_embeds, request.class_labels)
    given = sum(each not in (None, ()) for each in subjects)
    # Null is no class, for a pixel-space model, and must be said: a prompt is easily forgotten.
    if given > 1 or (given == 0 and "class_labels" not in request.model_fields_set):
        what = "give `prompt`, `prompt_embeds` or, to a pixel-space model, `class_labels`"
        yield FieldError(where="prompt", what=what, limit="one of the three")
    for where, other in _NOT_BOTH:
        if getattr(request, where) is not None and getattr(request, other) is not None:
            yield FieldError(
                where=where, what=f"give `{where}` or `{other}`", limit="one of the two"
            )
    for where, other in _ONLY_WITH.items():
        is_set = where in request.model_fields_set and getattr(request, where) is not None
        if is_set and getattr(request, other) is None:
            yield FieldError(
                where=where, what=f"has no meaning without `{other}`", limit=f"with `{other}`"
            )
    yield from _numbers_of_texts(request)
    yield from _seeds(request)
    yield from _guidance(request)
    yield from _doubled_loras(request)
    size_bytes = len(json.dumps(request.metadata, ensure_ascii=False).encode())
    if size_bytes > MAX_METADATA_BYTES:
        yield FieldError(
            where="metadata",
            what=f"takes {size_bytes} bytes as JSON",
            limit=f"<= {MAX_METADATA_BYTES} bytes",
        )
    yield from _bad_webhook(request.webhook)


def _numbers_of_texts(request: GenerationRequest) -> Iterator[FieldError]:
    prompts = len(request.prompts)
    for where in _AS_MANY:
        texts = getattr(request, where)
        if isinstance(texts, list) and prompts and len(texts) != prompts:
            yield FieldError(
                where=where,
                what=f"has {len(texts)} entries for {prompts} prompts",
                limit="as many as prompts",
            )


def _seeds(request: GenerationRequest) -> Iterator[FieldError]:
    images = request.rows * request.num_images_per_prompt
    is_known = request.prompt_embeds is None
    if isinstance(request.seed, list) and is_known and len(request.seed) != images:
        yield FieldError(
            where="seed", what=f"has {len(request.seed)} entries for {images} images", limit="equal"
        )
    if isinstance(request.seed, int) and request.seed + images - 1 > MAX_SEED:
        yield FieldError(
            where="seed", what="the last image's seed is too large", limit=f"<= {MAX_SEED}"
        )


def _guidance(request: GenerationRequest) -> Iterator[FieldError]:
    if request.eta > 0 and request.scheduler not in (None, *ETA_SCHEDULERS):
        yield FieldError(
            where="eta",
            what=f"has no meaning for scheduler {request.scheduler}",
            limit=f"{' and '.join(ETA_SCHEDULERS)} only",
        )
    if request.sag_start >= request.sag_stop:
        yield FieldError(
            where="sag_start",
            what=f"is {request.sag_start:g} and `sag_stop` {request.sag_stop:g}",
            limit="< sag_stop",
        )
    if request.guidance_rescale > 0 and request.guidance_scale <= 1:
        yield FieldError(
            where="guidance_rescale",
            what=f"has no meaning for a guidance_scale of {request.guidance_scale:g}",
            limit="with guidance_scale > 1",
        )


def _doubled_loras(request: GenerationRequest) -> Iterator[FieldError]:
    names = [each.name for each in request.loras or ()]
    for index, name in enumerate(names):
        if name in names[:index]:
            where, what = f"loras[{index}].name", f"{name!r} is there twice"
            yield FieldError(where=where, what=what, limit="each adapter once")


def _bad_webhook(url: str | None) -> Iterator[FieldError]:
    """What the pattern of the field can't check: brackets around an IPv6 address, and the port."""
    try:
        is_valid = urlsplit(url or "").port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        limit = "a host name or an address, and a port of 1 to 65535"
        yield FieldError(where="webhook", what="has no valid host or port", limit=limit)


def over_limits(request: GenerationRequest, limits: Limits) -> Iterator[FieldError]:
    """Values outside of the limits of this worker, which has filled in the model's defaults."""
    for where, side in (("height", request.height), ("width", request.width)):
        if side is not None and side > limits.max_side_px:
            yield FieldError(where=where, what=f"is {side} px", limit=f"<= {limits.max_side_px}")
    if request.num_inference_steps > limits.max_steps:
        yield FieldError(
            where="num_inference_steps",
            what=f"is {request.num_inference_steps}",
            limit=f"<= {limits.max_steps}",
        )
    if request.image is not None and request.num_inference_steps * request.strength < 1:
        yield FieldError(
            where="strength",
            what=f"is {request.strength:g}: none of {request.num_inference_steps} steps is made",
            limit="num_inference_steps x strength >= 1",
        )
    images = request.rows * request.num_images_per_prompt
    if images > limits.max_images:
        yield FieldError(
            where="num_images_per_prompt",
            what=f"prompts x images is {images}",
            limit=f"<= {limits.max_images}",
        )
