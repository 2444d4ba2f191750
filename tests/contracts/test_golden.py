"""Recorded messages and events of schema version 1 stay readable.

A file in `golden/` never changes; a new kind gets a new file.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from kombu.message import Message

from api_contracts.events import EVENT
from api_contracts.parse import parse_request
from api_contracts.schemas import json_schemas
from tests.record.mail import celery_takes, fault_in
from worker.broker.validate_message import envelope, normalize

GOLDEN = Path(__file__).parent / "golden"
PROMPTS = {
    "client": "a green ring on a black background",
    "celery-python": "a large red star on a blue background",
    "celery-node": "a large red star on a blue background",
    "client-image": "a large red star on a blue background",
    "raw": "a large red circle on a white background",
    "client-loras": "a large red star on a blue background",
    "client-classes": None,
}
SENDERS = [*PROMPTS]


def frame(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def body_of(entry: Any) -> bytes:
    """The body of a message, which says whether it is in base64."""
    body: str = entry["body"]
    in_base64 = entry["properties"].get("body_encoding") == "base64"
    return base64.b64decode(body) if in_base64 else body.encode()


@pytest.mark.parametrize("sender", SENDERS)
def test_a_message_of_each_sender_is_taken(sender: str) -> None:
    """A recorded message of each sender becomes a valid request with the sender's id."""
    entry = frame(sender)
    whole = envelope(entry, "generate.default", "owner/tag", 5)
    message = Message(
        body=body_of(whole),
        content_type=whole["content-type"],
        content_encoding=whole["content-encoding"],
        headers=whole["headers"],
        properties=whole["properties"],
        delivery_tag="owner/tag",
    )
    assert normalize(message) is None
    assert fault_in(message) is None
    request = celery_takes(message)
    assert request.id == entry["headers"]["id"]
    asked = parse_request(request.kwargs["request"])
    assert asked.prompt == PROMPTS[sender]
    assert asked.to_wire() == request.kwargs["request"]


@pytest.mark.parametrize("sender", SENDERS)
def test_a_message_of_each_sender_fits_the_schema(sender: str) -> None:
    """A recorded message and its body are valid by the published schema."""
    schema, entry = json_schemas.documents()["message.json"], frame(sender)
    Draft202012Validator(schema).validate(entry)
    body = {"$ref": "#/$defs/Body", "$defs": schema["$defs"]}
    Draft202012Validator(body).validate(json.loads(body_of(entry)))


@pytest.mark.parametrize("event", frame("events"), ids=lambda event: event["type"])
def test_an_event_is_read(event: dict[str, Any]) -> None:
    """A recorded event is read with every field and value."""
    read = json.loads(EVENT.validate_python(event).model_dump_json())
    assert _within(event | {"at": read["at"]}, read)
    Draft202012Validator(json_schemas.documents()["event.json"]).validate(event)


def _within(old: Any, new: Any) -> bool:
    if isinstance(old, dict):
        return all(name in new and _within(value, new[name]) for name, value in old.items())
    if isinstance(old, list):
        return len(old) == len(new) and all(map(_within, old, new))
    return bool(old == new)
