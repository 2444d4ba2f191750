"""From untrusted data to a request, or to every fault in it, each with its place and limit."""

from __future__ import annotations

import ipaddress
import itertools
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

#: Longest piece of a refused value that is repeated to the caller.
_ECHO_CHARS = 80
#: More entries than any object of a request can have: metadata of so many is too long already.
_MOST_ENTRIES = 600
#: Names that pydantic puts into an error's place for the branch of a union.
_TAGS = frozenset({"one", "many"})
#: A field whose value may hold a token: it is not repeated.
_PRIVATE = "webhook"
_UNIONS = frozenset({"prompt", "negative_prompt", "seed"})


def parse_request(data: Mapping[str, Any], limits: Limits | None = None) -> GenerationRequest:
    """The request in `data`; raises `InvalidRequest` with every fault that was found.

    Without `limits` only the contract's own are checked.
    """
    if not isinstance(data, dict):
        raise InvalidRequest([FieldError(where="request", what="is not an object", limit="object")])
    if crowded := [*_crowded(data)]:
        raise InvalidRequest(crowded[:20])
    try:
        request = GenerationRequest.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise InvalidRequest([_fault(detail) for detail in found[:20]]) from None
    faults = [*_contradictions(request), *_nowhere(request.webhook)]
    if faults := [*faults, *(_beyond(request, limits) if limits else ())]:
        raise InvalidRequest(faults)
    return request


def _crowded(data: dict[str, Any]) -> Iterator[FieldError]:
    """Objects of so many entries that their faults alone would fill the memory."""
    for where, value in (("request", data), *itertools.islice(data.items(), _MOST_ENTRIES)):
        if isinstance(value, dict) and len(value) > _MOST_ENTRIES:
            what = f"has {len(value)} entries"
            yield FieldError(where=where[:200], what=what, limit=f"<= {_MOST_ENTRIES} entries")


def _fault(detail: ErrorDetails) -> FieldError:
    where = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part not in _TAGS or where not in _UNIONS:
            where += f".{part}" if where else part
    given = detail["input"]
    secret = where.startswith(_PRIVATE)
    echo = "" if secret or detail["type"] == "missing" else f" (got {_echo(given)})"
    context = {key: value for key, value in detail.get("ctx", {}).items() if key != "error"}
    limit = ", ".join(f"{key} {value}" for key, value in context.items()) or detail["type"]
    return FieldError(where=where[:200] or "request", what=detail["msg"] + echo, limit=limit)


def _echo(value: object) -> str:
    if isinstance(value, str | list | dict):
        text = repr(value[:_ECHO_CHARS]) if isinstance(value, str) else type(value).__name__
        return f"{text}, length {len(value)}"
    if isinstance(value, int) and value.bit_length() > _ECHO_CHARS:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:_ECHO_CHARS].encode("ascii", "backslashreplace").decode()


def _nowhere(url: str | None) -> Iterator[FieldError]:
    """What is wrong with a URL that looks like one."""
    try:
        parts = urlsplit(url or "")
        if parts.netloc.startswith("["):
            ipaddress.IPv6Address(parts.hostname or "")
        if parts.port != 0:
            return
    except ValueError:
        pass
    limit = "a host name or an address, and a port of 1 to 65535"
    yield FieldError(where="webhook", what="its host or port is none", limit=limit)


def _contradictions(request: GenerationRequest) -> Iterator[FieldError]:
    """What is wrong between fields, each of which is right by itself."""
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


def _beyond(request: GenerationRequest, limits: Limits) -> Iterator[FieldError]:
    """What this worker's limits do not allow."""
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
