"""Validates untrusted data as a request, or reports every error in it with place and limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from api_contracts import request_rules
from api_contracts.errors import FieldError, InvalidRequest
from api_contracts.request import GenerationRequest, Limits

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
_UNIONS = frozenset(
    {"prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "seed", "class_labels"}
)
_BRANCHES = frozenset({"one", "many"})
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
    errors = [*request_rules.conflicts(request)]
    if errors := [*errors, *(request_rules.over_limits(request, limits) if limits else ())]:
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
