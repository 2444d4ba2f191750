"""What is published as version 1 is only added to: nobody who read it has to change anything."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.schemas import json_schemas

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Words of a schema that are for people.
_WORDS = {"description", "examples", "title"}
#: Files whose content others write and the worker reads; the rest is the other way round.
READ_HERE = {"request.json", "message.json"}


def shape(node: Any) -> Any:
    """A schema without what is for people, and without where a definition stands."""
    match node:
        case dict():
            return {
                name: shape(value) for name, value in node.items()
                if name not in _WORDS or isinstance(value, dict)
            }  # fmt: skip
        case list():
            return [shape(each) for each in node]
        case _:
            return node


def parts(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The document itself and its definitions, by name."""
    return {"": document, **document.get("$defs", {})}


def breaches(old: dict[str, Any], new: dict[str, Any], *, read_here: bool) -> list[str]:
    """What of a document a reader or a writer of the old one would stumble over."""
    found, now = [], parts(new)
    for name, was in parts(old).items():
        if name not in now:
            found.append(f"{name} is gone")
            continue
        found += [f"{name}: {each}" for each in _changes(was, now[name], read_here=read_here)]
    return found


def _changes(was: dict[str, Any], now: dict[str, Any], *, read_here: bool) -> Iterator[str]:
    for field, about in was.get("properties", {}).items():
        if shape(now.get("properties", {}).get(field)) != shape(about):
            yield f"{field} is another"
    before, after = (set(each.get("required", ())) for each in (was, now))
    if missing := (after - before) if read_here else (before - after):
        yield f"{sorted(missing)} must be there, or needn't any more"
    for word in ("enum", "oneOf"):  # more of them are no harm
        if any(shape(each) not in shape(now.get(word, [])) for each in was.get(word, ())):
            yield f"less of {word}"
    rest = {*was, *now} - _WORDS - {"properties", "required", "enum", "oneOf", "$defs", "$id"}
    rest -= {"discriminator"}  # its map of types grows, as `oneOf` does
    yield from (
        f"{each} is another" for each in rest if shape(was.get(each)) != shape(now.get(each))
    )


def test_the_previous_versions_schemas_hold(previous: Path) -> None:
    """No file, object or field is gone or changed; none that others write is newly required."""
    folder = previous / "api_contracts" / "schema" / "v1"
    for file in sorted(folder.glob("*.json")):
        if file.name == "asyncapi.json":
            continue
        old, new = json.loads(file.read_text()), json_schemas.documents()[file.name]
        assert breaches(old, new, read_here=file.name in READ_HERE) == [], file.name


def test_the_previous_versions_channels_hold(previous: Path) -> None:
    """No channel, message or operation is gone, and none has another address."""
    file = previous / "api_contracts" / "schema" / "v1" / "asyncapi.json"
    old, new = json.loads(file.read_text()), json_schemas.documents()["asyncapi.json"]
    for name, channel in old["channels"].items():
        assert new["channels"][name]["address"] == channel["address"]
        assert set(channel["messages"]) <= set(new["channels"][name]["messages"])
    assert set(old["operations"]) <= set(new["operations"])


@pytest.mark.parametrize("read_here", [True, False])
def test_a_breach_would_be_seen(read_here: bool) -> None:
    """A field that is gone, another type, a narrower limit, another required."""
    field = {"type": "integer", "minimum": 1, "description": "a"}
    old = {"properties": {"a": field, "b": field}, "required": ["a"], "$defs": {}}
    again = json.loads(json.dumps(old)) | {"title": "new", "description": "words"}
    again["properties"]["c"] = field
    assert breaches(old, again, read_here=read_here) == []
    for spoilt in ({}, {"a": field, "b": field | {"minimum": 2}}, {"a": {"type": "number"}}):
        assert breaches(old, again | {"properties": spoilt}, read_here=read_here)
    assert bool(breaches(old, again | {"required": ["a", "c"]}, read_here=read_here)) is read_here
    assert bool(breaches(old, again | {"required": []}, read_here=read_here)) is not read_here
    assert breaches(old | {"$defs": {"D": old}}, again, read_here=read_here)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"enum": ["a", "b"]}, {"enum": ["a"]}),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, {"oneOf": [{"type": "string"}]}),
        ({"type": "array", "maxItems": 3}, {"type": "array", "maxItems": 2}),
        ({"type": "object"}, {"type": "array"}),
        ({"type": "object"}, {"type": "object", "additionalProperties": False}),
    ],
)
def test_a_breach_of_what_is_no_object_would_be_seen(
    was: dict[str, Any], now: dict[str, Any]
) -> None:
    """Of a set of words, of a choice, of a list, of a kind."""
    old, new = ({"$defs": {"D": each}} for each in (was, now))
    assert breaches(old, new, read_here=True)
    assert not breaches(old, old, read_here=True)
