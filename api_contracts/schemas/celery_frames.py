"""The schema of a Celery message, protocol 2, as kombu puts it into a Redis list."""

from __future__ import annotations

from typing import Any

from api_contracts import names
from api_contracts.pushes import MESSAGE_ID, MESSAGE_ID_PATTERN

#: As `names.TASK_ID_PATTERN`; ECMA-262 writes `$` for the end of the text.
_TASK_ID = {
    "type": "string",
    "pattern": names.TASK_ID_PATTERN.replace(r"\Z", "$"),
    "description": "The task's id, everywhere.",
}


def frame(argument: str, about: dict[str, Any], task: str | None) -> dict[str, Any]:
    """A message with one keyword argument; `task` is None where the caller chooses its name."""
    body = {
        "type": "array",
        "description": "Arguments, keyword arguments, and what Celery embeds.",
        "prefixItems": [
            {"type": "array", "maxItems": 0},
            {
                "type": "object",
                "properties": {argument: about},
                "required": [argument],
                "additionalProperties": False,
            },
            {"type": ["object", "null"]},
        ],
        "minItems": 3,
        "maxItems": 3,
    }
    return {
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
            "headers": _headers(task) if task else _headers_of_a_reply(),
            "properties": _properties(),
        },
        "$defs": {"Body": body},
    }


def _headers(task: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["task", "id"],
        "properties": {
            "task": {"const": task},
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


def _headers_of_a_reply() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["task", "id"],
        "properties": {
            "task": {"type": "string", "description": "Of the request's `reply_to`."},
            "id": {"type": "string", "pattern": MESSAGE_ID_PATTERN, "description": MESSAGE_ID},
        },
        "description": "Others are as Celery sends them.",
    }


def _properties() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "body_encoding": {"enum": ["base64", None]},
            "correlation_id": {"type": "string", "description": "The task's id, as Celery has it."},
            "delivery_tag": {
                "type": "string",
                "description": "As Celery has it; not read.",
            },
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
