"""The published schemas match the models, and what is sent matches the schemas."""

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
REQUEST = Draft202012Validator(SCHEMAS["request.json"])


def published(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((json_schemas.FOLDER / name).read_text())
    return found


def is_valid(name: str, instance: object) -> bool:
    return bool(Draft202012Validator(published(name)).is_valid(instance))


def test_the_files_are_those_of_the_models() -> None:
    """The published files are those generated from the models (`make docs`)."""
    there = {file.name: file.read_text() for file in json_schemas.FOLDER.iterdir()}
    assert there == {name: json_schemas.text(each) for name, each in DOCUMENTS.items()}


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_is_a_schema_whose_examples_hold(name: str) -> None:
    """Each file is a valid schema without outside references, and its examples are valid."""
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
    """Every field has a description."""
    schema = published(name)
    for each in (schema, *schema.get("$defs", {}).values()):
        for field, about in each.get("properties", {}).items():
            said = {"description", "$ref", "const"} & set(about)
            assert said, f"{each.get('title')}.{field}"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=VALID | NEAR)
def test_what_is_accepted_is_valid(data: dict[str, Any]) -> None:
    """Every request that the parser accepts is valid by the schema."""
    try:
        parse_request(data)
    except ValueError:
        return
    REQUEST.validate(data)


@pytest.mark.parametrize(
    "data",
    [
        {}, {"prompt": None}, {"prompt": "x" * 2001}, {"prompt": []},
        {"prompt": "x", "prompt_embeds": {"s3": "a.safetensors"}}, {"prompt": "x", "nope": 1},
        {"prompt": "x", "height": 65}, {"prompt": "x", "sag_scale": -1},
        {"prompt": "x", "seed": 2**63}, {"prompt": "x", "priority": 10},
        {"prompt": "x", "schema_version": 2}, {"prompt": "x", "output_type": "gif"},
        {"prompt": "x", "latents": {"s3": "../a.safetensors"}}, {"prompt": "x", "model": "a/b"},
        {"prompt": "x", "metadata": {"k": 1}}, {"prompt": "x", "deadline_s": 0},
        {"prompt": "x", "image": {"s3": "a.gif"}}, {"prompt": "x", "sag_blur_sigma": 0},
        {"prompt": "x", "image": {"s3": "a.png"}, "strength": 0}, {"prompt": "x", "sag_stop": 1.1},
        {"prompt": "x", "sag_mask_threshold": 5}, {"prompt": "x", "guidance_rescale": 2},
        {"prompt": "x", "target_size": [64]}, {"prompt": "x", "original_size": [0, 64]},
        {"prompt": "x", "crops_coords_top_left": [0, -1]}, {"prompt": "x", "prompt_2": []},
        {"class_labels": []}, {"class_labels": -1}, {"prompt": "x", "class_labels": "3"},
        {"prompt": "x", "class_labels": 3}, {"prompt": ["x"], "class_labels": [3]},
        {"prompt_embeds": {"s3": "a.safetensors"}, "class_labels": 3},
        {"prompt": "x", "loras": [{"name": "a", "scale": 11}]},
        {"prompt": "x", "loras": [{"name": "a"}] * 9}, {"prompt": "x", "loras": [{}]},
    ],
)  # fmt: skip
def test_what_is_refused_is_not_valid(data: dict[str, Any]) -> None:
    """Every limit of a single field is in the schema."""
    with pytest.raises(ValueError, match=r"."):
        parse_request(data)
    with pytest.raises(ValidationError):
        REQUEST.validate(data)


@pytest.mark.parametrize("kind", json_schemas.kinds())
def test_an_event_is_valid_by_its_type_alone(kind: str) -> None:
    """An event is valid by the schema of its type and by no other type's."""
    event = examples.EVENTS[kind]
    assert EVENT.validate_python(event).type == kind
    assert is_valid("event.json", event)
    holding = [each for each in json_schemas.kinds() if is_valid(f"event-{each}.json", event)]
    assert holding == [kind]
    untyped = {name: value for name, value in event.items() if name != "type"}
    assert not is_valid("event.json", untyped)


def test_readers_of_today_take_what_a_later_version_adds() -> None:
    """Unknown fields and codes are accepted by schemas and models."""
    event = examples.EVENTS["failed"] | {"later": 1}
    error = examples.ERROR | {"code": "of_a_later_version", "later": 1}
    result = examples.RESULT | {"later": {"a": 1}}
    for name, instance in (("event", event), ("error", error), ("result", result)):
        assert is_valid(f"{name}.json", instance)
    assert EVENT.validate_python(event).type == "failed"
    assert TaskError.model_validate(error).code == "of_a_later_version"
    assert GenerationResult.model_validate(result).batch == examples.RESULT["batch"]


def test_all_kinds_and_codes_are_there() -> None:
    """Each terminal status has an event, and each error code is published."""
    ends = {status.value for status in TaskStatus if status.is_terminal}
    assert ends < set(json_schemas.kinds())
    text = json.dumps(published("error.json"))
    assert all(f'"{code}"' in text for code in ErrorCode)
