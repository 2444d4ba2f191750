"""The published schemas: they say what the models say, and what is sent is what they say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from api_contracts.errors import ErrorCode, TaskError
from api_contracts.events import EVENT, TaskStatus
from api_contracts.parse import parse_request
from api_contracts.result import GenerationResult
from api_contracts.schemas import examples, json_schemas
from tests.contracts.test_request_property import NEAR, VALID

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENTS = json_schemas.documents()
SCHEMAS = {name: each for name, each in DOCUMENTS.items() if name != "asyncapi.json"}


def published(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((json_schemas.FOLDER / name).read_text())
    return found


def is_valid(name: str, instance: object) -> bool:
    return bool(Draft202012Validator(published(name)).is_valid(instance))


def test_the_files_are_those_of_the_models() -> None:
    """Who changes a model sees the change in what is published: `make docs` writes it."""
    there = {file.name: file.read_text() for file in json_schemas.FOLDER.iterdir()}
    assert there == {name: json_schemas.text(each) for name, each in DOCUMENTS.items()}


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_is_a_schema_whose_examples_hold(name: str) -> None:
    """By a validator that is not ours; it stands for itself, with no reference to other files."""
    schema = published(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == json_schemas.DIALECT
    assert schema["examples"]
    for example in schema["examples"]:
        Draft202012Validator(schema).validate(example)
    references = set(_references(schema))
    assert all(each.startswith("#/$defs/") for each in references)
    assert {each.removeprefix("#/$defs/") for each in references} <= set(schema.get("$defs", {}))


def _references(node: object) -> Iterator[str]:
    match node:
        case dict():
            for name, value in node.items():
                if name == "$ref":
                    yield value
                else:
                    yield from _references(value)
        case list():
            for value in node:
                yield from _references(value)


@pytest.mark.parametrize("name", ["request.json", "event.json", "result.json", "error.json"])
def test_every_field_is_described(name: str) -> None:
    """In words, as units can't be guessed; a type of event is its own description."""
    schema = published(name)
    for each in (schema, *schema.get("$defs", {}).values()):
        for field, about in each.get("properties", {}).items():
            said = {"description", "$ref", "const"} & set(about)
            assert said, f"{each.get('title')}.{field}"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=VALID | NEAR)
def test_what_is_accepted_is_valid(data: dict[str, Any]) -> None:
    """The schema refuses nothing that a worker would take."""
    try:
        parse_request(data)
    except ValueError:
        return
    Draft202012Validator(SCHEMAS["request.json"]).validate(data)


@pytest.mark.parametrize(
    "data",
    [
        {}, {"prompt": None}, {"prompt": ""}, {"prompt": "x" * 2001}, {"prompt": []},
        {"prompt": "x", "prompt_embeds": {"s3": "a.safetensors"}}, {"prompt": "x", "nope": 1},
        {"prompt": "x", "height": 65}, {"prompt": "x", "sag_scale": -1},
        {"prompt": "x", "seed": 2**63}, {"prompt": "x", "priority": 10},
        {"prompt": "x", "schema_version": 2}, {"prompt": "x", "output_type": "gif"},
        {"prompt": "x", "latents": {"s3": "../a.safetensors"}}, {"prompt": "x", "model": "a/b"},
        {"prompt": "x", "metadata": {"k": 1}}, {"prompt": "x", "deadline_s": 0},
    ],
)  # fmt: skip
def test_what_is_refused_is_not_valid(data: dict[str, Any]) -> None:
    """Each limit of a field by itself; what two fields say together only the worker checks."""
    with pytest.raises(ValueError, match=r"."):
        parse_request(data)
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMAS["request.json"]).validate(data)


@pytest.mark.parametrize("kind", json_schemas.kinds())
def test_an_event_is_told_by_its_type(kind: str) -> None:
    """Its own schema and that of all hold; those of the others do not."""
    event = examples.EVENTS[kind]
    assert EVENT.validate_python(event).type == kind
    assert is_valid("event.json", event)
    holding = [each for each in json_schemas.kinds() if is_valid(f"event-{each}.json", event)]
    assert holding == [kind]
    untyped = {name: value for name, value in event.items() if name != "type"}
    assert not is_valid("event.json", untyped)


def test_readers_of_today_take_what_a_later_version_adds() -> None:
    """A field more, and a code more, are no break: neither for the schema nor for the models."""
    event = examples.EVENTS["failed"] | {"later": 1}
    error = examples.ERROR | {"code": "of_a_later_version", "later": 1}
    result = examples.RESULT | {"later": {"a": 1}}
    for name, instance in (("event", event), ("error", error), ("result", result)):
        assert is_valid(f"{name}.json", instance)
    assert EVENT.validate_python(event).type == "failed"
    assert TaskError.model_validate(error).code == "of_a_later_version"
    assert GenerationResult.model_validate(result).batch == examples.RESULT["batch"]


def test_all_kinds_and_codes_are_there() -> None:
    """Of the states each end has an event; the codes are all named."""
    ends = {status.value for status in TaskStatus if status.is_terminal}
    assert ends < set(json_schemas.kinds())
    text = json.dumps(published("error.json"))
    assert all(f'"{code}"' in text for code in ErrorCode)
