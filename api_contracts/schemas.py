"""The published JSON Schemas, made from the models; `python -m api_contracts.schemas` writes them.

A file that is published is never edited: what breaks a reader goes into the next version's folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import TypeAdapter

from api_contracts import asyncapi, examples, names
from api_contracts.errors import TaskError
from api_contracts.events import EVENT, Event
from api_contracts.request import GenerationRequest
from api_contracts.result import GenerationResult

if TYPE_CHECKING:
    from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = 1
FOLDER = Path(__file__).parent / "schema" / f"v{VERSION}"
#: As `names.TASK_ID_PATTERN`, with the end of the text as ECMA-262 has it.
_TASK_ID = {
    "type": "string",
    "pattern": names.TASK_ID_PATTERN.replace(r"\Z", "$"),
    "description": "The task's id, everywhere.",
}


def kinds() -> dict[str, type[BaseModel]]:
    """The model of each type of event, in the order in which they can occur."""
    models = get_args(get_args(Event)[0])
    return {model.model_fields["type"].default: model for model in models}


def documents() -> dict[str, dict[str, Any]]:
    """Every file of the folder, by its name."""
    found = {
        "request.json": _request(),
        "event.json": _event(EVENT, "event", [*examples.EVENTS.values()]),
        "result.json": _document(GenerationResult, "result", [examples.RESULT]),
        "error.json": _document(TaskError, "error", [examples.ERROR]),
        "message.json": _message(),
    }
    for kind, model in kinds().items():
        found[f"event-{kind}.json"] = _event(model, f"event-{kind}", [examples.EVENTS[kind]])
    return found | {"asyncapi.json": asyncapi.document(kinds())}


def _document(model: Any, name: str, shown: list[Any]) -> dict[str, Any]:  # noqa: ANN401  # a model or an adapter of a union
    made = TypeAdapter(model) if isinstance(model, type) else model
    schema = made.json_schema(mode="validation")
    for each in (schema, *schema.get("$defs", {}).values()):
        for about in each.get("properties", {}).values():
            about.pop("title", None)  # the field's name again
    return {
        "$schema": DIALECT,
        "$id": f"urn:sag-worker:v{VERSION}:{name}",
        "title": name.replace("-", " "),
        **schema,
        "examples": shown,
    }


def _request() -> dict[str, Any]:
    found = _document(GenerationRequest, "request", examples.REQUESTS)
    given = {"prompt": {"type": ["string", "array"]}, "prompt_embeds": {"type": "object"}}
    found["oneOf"] = [
        {"title": f"by {name}", "required": [name], "properties": {name: about}}
        for name, about in given.items()
    ]
    return found


def _event(model: Any, name: str, shown: list[Any]) -> dict[str, Any]:  # noqa: ANN401  # as above
    """An event. Its type is what tells it from the others, so it is always there."""
    found = _document(model, name, shown)
    for each in (found, *found.get("$defs", {}).values()):
        kind = each.get("properties", {}).get("type")
        if kind and "const" in kind:
            del kind["default"]
            each["required"] = ["type", *each["required"]]
    return found


def _message() -> dict[str, Any]:
    """An entry of a queue's list: Celery's message, protocol 2, as kombu lays it into Redis."""
    request = _request()
    definitions = request.pop("$defs")
    for name in ("$schema", "$id", "examples"):
        del request[name]
    body = {
        "type": "array",
        "description": "Arguments, keyword arguments, and what Celery embeds.",
        "prefixItems": [
            {"type": "array", "maxItems": 0},
            {
                "type": "object",
                "properties": {"request": {"$ref": "#/$defs/GenerationRequest"}},
                "required": ["request"],
                "additionalProperties": False,
            },
            {"type": ["object", "null"]},
        ],
        "minItems": 3,
        "maxItems": 3,
    }
    return {
        "$schema": DIALECT,
        "$id": f"urn:sag-worker:v{VERSION}:message",
        "title": "message",
        "description": "An entry of the Redis list of a queue: Celery's protocol 2.",
        "type": "object",
        "required": ["body", "content-type", "content-encoding", "headers", "properties"],
        "properties": {
            "body": {
                "type": "string",
                "description": "Base64 of JSON where `body_encoding` says so, else JSON.",
                "contentEncoding": "base64",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": "#/$defs/Body"},
            },
            "content-type": {"const": "application/json"},
            "content-encoding": {"const": "utf-8"},
            "headers": _headers(),
            "properties": _properties(),
        },
        "examples": [examples.MESSAGE],
        "$defs": {**definitions, "GenerationRequest": request, "Body": body},
    }


def _headers() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["task", "id"],
        "properties": {
            "task": {"const": names.TASK_NAME},
            "id": _TASK_ID,
            "expires": {
                "type": ["string", "null"],
                "description": "ISO 8601. Begun later, the task ends as `expired`.",
            },
            "eta": {"type": "null", "description": "Not served."},
            "compression": {"type": "null", "description": "Not served."},
            "ignore_result": {
                "type": ["boolean", "null"],
                "description": "True: Celery keeps nothing of the end. The events tell it.",
            },
        },
        "description": "Other headers, as Celery sends them, change nothing.",
    }


def _properties() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "body_encoding": {"enum": ["base64", None]},
            "correlation_id": {"type": "string", "description": "The task's id, as Celery has it."},
            "delivery_tag": {"type": "string", "description": "New for each message: a UUID."},
            "delivery_info": {
                "type": "object",
                "properties": {
                    "exchange": {"type": "string"},
                    "routing_key": {"type": "string", "description": "The queue."},
                },
            },
            "priority": {
                "type": "integer",
                "minimum": min(names.PRIORITIES),
                "maximum": max(names.PRIORITIES),
                "description": "Of the list that it lies in; a message given back goes there.",
            },
        },
    }


def text(document: dict[str, Any]) -> str:
    """A file's content."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, document in documents().items():
        (FOLDER / name).write_text(text(document))


if __name__ == "__main__":
    main()
