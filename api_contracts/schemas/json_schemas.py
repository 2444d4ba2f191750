"""The published JSON Schemas, generated from the models.

`python -m api_contracts.schemas.json_schemas` writes them. A published file never changes in a way
that breaks a reader: such a change goes into the folder of the next version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import TypeAdapter

from api_contracts import names
from api_contracts.errors import TaskError
from api_contracts.events import EVENT, End, Event
from api_contracts.request import GenerationRequest
from api_contracts.result import GenerationResult
from api_contracts.schemas import asyncapi, celery_frames, examples

if TYPE_CHECKING:
    from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = 1
FOLDER = Path(__file__).parents[1] / "schema" / f"v{VERSION}"


def kinds() -> dict[str, type[BaseModel]]:
    """The model of each event type, in the order in which they occur."""
    models = get_args(get_args(Event)[0])
    return {model.model_fields["type"].default: model for model in models}


def documents() -> dict[str, dict[str, Any]]:
    """Every file of the folder, by name."""
    found = {
        "request.json": _request(),
        "event.json": _event(EVENT, "event", [*examples.EVENTS.values()]),
        "result.json": _document(GenerationResult, "result", [examples.RESULT]),
        "error.json": _document(TaskError, "error", [examples.ERROR]),
        "end.json": _end(),
        "message.json": _message(),
        "reply.json": _reply(),
    }
    for kind, model in kinds().items():
        found[f"event-{kind}.json"] = _event(model, f"event-{kind}", [examples.EVENTS[kind]])
    return found | {"asyncapi.json": asyncapi.document(kinds())}


def _document(model: Any, name: str, shown: list[Any]) -> dict[str, Any]:  # noqa: ANN401  # a model or an adapter of a union
    made = TypeAdapter(model) if isinstance(model, type) else model
    schema = made.json_schema(mode="validation")
    for each in (schema, *schema.get("$defs", {}).values()):
        for about in each.get("properties", {}).values():
            about.pop("title", None)  # repeats the field's name
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
    # Null is no class, but has to be there; labels beside a prompt match two of the branches.
    absent = {"properties": {name: {"type": "null"} for name in given}}
    labels = {"properties": {"class_labels": {"type": ["integer", "array"]}}}
    found["oneOf"].append(
        {"title": "by class_labels", "required": ["class_labels"], "anyOf": [absent, labels]}
    )
    return found


def _event(model: Any, name: str, shown: list[Any]) -> dict[str, Any]:  # noqa: ANN401  # as above
    """An event. Readers distinguish events by `type`, so it is required."""
    found = _document(model, name, shown)
    for each in (found, *found.get("$defs", {}).values()):
        kind = each.get("properties", {}).get("type")
        if kind and "const" in kind:
            del kind["default"]
            each["required"] = ["type", *each["required"]]
    return found


def _message() -> dict[str, Any]:
    """An entry of a queue's list, with the request in its body."""
    request, definitions = _inner(_request())
    made = celery_frames.frame("request", {"$ref": "#/$defs/GenerationRequest"}, names.TASK_NAME)
    made["$defs"] |= {**definitions, "GenerationRequest": request}
    return _whole("message", made, examples.MESSAGE)


def _reply() -> dict[str, Any]:
    """What `reply_to` sends, with the terminal event in its body."""
    event, definitions = _inner(_end())
    made = celery_frames.frame("event", {"$ref": "#/$defs/End"}, None)
    made["$defs"] |= {**definitions, "End": event}
    return _whole("reply", made, examples.REPLY)


def _end() -> dict[str, Any]:
    """The terminal event of a task, which is also what is pushed."""
    shown = [each for kind, each in examples.EVENTS.items() if asyncapi.is_end(kind)]
    return _event(TypeAdapter(End), "end", shown)


def _inner(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A document to embed in another one, and the definitions that it refers to."""
    definitions = document.pop("$defs", {})
    for name in ("$schema", "$id", "examples"):
        del document[name]
    return document, definitions


def _whole(name: str, schema: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    about = {"$schema": DIALECT, "$id": f"urn:sag-worker:v{VERSION}:{name}", "title": name}
    definitions = schema.pop("$defs")
    return {**about, **schema, "examples": [shown], "$defs": definitions}


def text(document: dict[str, Any]) -> str:
    """The content of a file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, document in documents().items():
        (FOLDER / name).write_text(text(document))


if __name__ == "__main__":
    main()
