"""Validates untrusted data as a request, or reports every error in it with place and limit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import ValidationError

from api_contracts.errors import FieldError, InvalidRequest
from api_contracts.request import (
    ETA_SCHEDULERS,
    MAX_METADATA_BYTES,
    MAX_SEED,
    GenerationRequest,
    Limits,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from pydantic_core import ErrorDetails

#: Most errors that are reported, and most characters of a refused value that are quoted.
_MAX_ERRORS, _MAX_QUOTED_CHARS = 20, 80
#: Most characters of a field's name that are quoted.
_MAX_WHERE_CHARS = 200
#: Most entries of an object. Pydantic collects an error for each unknown one: the 750,000 that
#: fit into a message would take 650 MiB and 6 s.
_MAX_ENTRIES = 600
#: Fields with a union type, and the names that pydantic adds to an error's place for its branches.
_UNIONS, _BRANCHES = frozenset({"prompt", "negative_prompt", "seed"}), frozenset({"one", "many"})
#: A field whose value may contain a token, so it is not quoted.
_SECRET_FIELD = "webhook"  # noqa: S105  # a name


def parse_request(data: Mapping[str, Any], limits: Limits | None = None) -> GenerationRequest:
    """The request in `data`; raises `InvalidRequest` with every error that was found.

    Without `limits` only the contract's own are checked.
    """
    if not isinstance(data, dict):
        raise InvalidRequest([FieldError(where="request", what="is not an object", limit="object")])
    if oversized := [*_oversized(data)]:
        raise InvalidRequest(oversized[:_MAX_ERRORS])
    try:
        request = GenerationRequest.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise InvalidRequest([_field_error(each) for each in found[:_MAX_ERRORS]]) from None
    errors = [*_conflicts(request), *_bad_webhook(request.webhook)]
    if errors := [*errors, *(_over_limits(request, limits) if limits else ())]:
        raise InvalidRequest(errors)
    return request


def _oversized(data: dict[str, Any]) -> Iterator[FieldError]:
    """Objects with more entries than any object of a valid request can have."""
    for where, value in (("request", data), *data.items()):
        if isinstance(value, dict) and len(value) > _MAX_ENTRIES:
            what = f"has {len(value)} entries"
            yield FieldError(
                where=where[:_MAX_WHERE_CHARS], what=what, limit=f"<= {_MAX_ENTRIES} entries"
            )


def _field_error(detail: ErrorDetails) -> FieldError:
    where = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part not in _BRANCHES or where not in _UNIONS:
            where += f".{part}" if where else part
    is_quoted = detail["type"] != "missing" and not where.startswith(_SECRET_FIELD)
    quoted = f" (got {_quote(detail['input'])})" if is_quoted else ""
    context = {key: value for key, value in detail.get("ctx", {}).items() if key != "error"}
    limit = ", ".join(f"{key} {value}" for key, value in context.items()) or detail["type"]
    return FieldError(
        where=where[:_MAX_WHERE_CHARS] or "request", what=detail["msg"] + quoted, limit=limit
    )


def _quote(value: object) -> str:
    """A refused value in at most some 100 characters."""
    if isinstance(value, str | list | dict):
        text = repr(value[:_MAX_QUOTED_CHARS]) if isinstance(value, str) else type(value).__name__
        return f"{text}, length {len(value)}"
    if isinstance(value, int) and value.bit_length() > _MAX_QUOTED_CHARS:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:_MAX_QUOTED_CHARS].encode("ascii", "backslashreplace").decode()


def _bad_webhook(url: str | None) -> Iterator[FieldError]:
    """What the pattern of the field can't check: brackets around an IPv6 address, and the port."""
    try:
        is_valid = urlsplit(url or "").port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        limit = "a host name or an address, and a port of 1 to 65535"
        yield FieldError(where="webhook", what="has no valid host or port", limit=limit)


def _conflicts(request: GenerationRequest) -> Iterator[FieldError]:
    """Fields that are valid alone, but not together."""
    prompts = len(request.prompts)
    if bool(prompts) == (request.prompt_embeds is not None):
        yield FieldError(
            where="prompt", what="give `prompt` or `prompt_embeds`", limit="one of the two"
        )
    if request.negative_prompt is not None and request.negative_prompt_embeds is not None:
        yield FieldError(
            where="negative_prompt",
            what="give `negative_prompt` or `negative_prompt_embeds`",
            limit="one of the two",
        )
    negatives = request.negative_prompt
    if isinstance(negatives, list) and prompts and len(negatives) != prompts:
        yield FieldError(
            where="negative_prompt",
            what=f"has {len(negatives)} entries for {prompts} prompts",
            limit="as many as prompts",
        )
    images = (prompts or 1) * request.num_images_per_prompt
    if isinstance(request.seed, list) and prompts and len(request.seed) != images:
        yield FieldError(
            where="seed", what=f"has {len(request.seed)} entries for {images} images", limit="equal"
        )
    if isinstance(request.seed, int) and request.seed + images - 1 > MAX_SEED:
        yield FieldError(
            where="seed", what="the last image's seed is too large", limit=f"<= {MAX_SEED}"
        )
    if request.eta > 0 and request.scheduler not in (None, *ETA_SCHEDULERS):
        yield FieldError(
            where="eta",
            what=f"has no meaning for scheduler {request.scheduler}",
            limit=f"{' and '.join(ETA_SCHEDULERS)} only",
        )
    size_bytes = len(json.dumps(request.metadata, ensure_ascii=False).encode())
    if size_bytes > MAX_METADATA_BYTES:
        yield FieldError(
            where="metadata",
            what=f"takes {size_bytes} bytes as JSON",
            limit=f"<= {MAX_METADATA_BYTES} bytes",
        )


def _over_limits(request: GenerationRequest, limits: Limits) -> Iterator[FieldError]:
    """Values above the limits of this worker."""
    for where, side in (("height", request.height), ("width", request.width)):
        if side is not None and side > limits.max_side_px:
            yield FieldError(where=where, what=f"is {side} px", limit=f"<= {limits.max_side_px}")
    if request.num_inference_steps > limits.max_steps:
        yield FieldError(
            where="num_inference_steps",
            what=f"is {request.num_inference_steps}",
            limit=f"<= {limits.max_steps}",
        )
    images = (len(request.prompts) or 1) * request.num_images_per_prompt
    if images > limits.max_images:
        yield FieldError(
            where="num_images_per_prompt",
            what=f"prompts x images is {images}",
            limit=f"<= {limits.max_images}",
        )
