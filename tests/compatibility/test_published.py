"""Version 1 of the published schemas only grows: no reader or writer of it has to change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.schemas import json_schemas

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Keywords of a schema that describe and do not validate.
_WORDS = {"description", "examples", "title"}
#: Files whose content callers write and the worker reads; the others are written by the worker.
READ_HERE = {"request.json", "message.json"}


def shape(node: Any) -> Any:
    """A schema without `_WORDS`."""
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


def lifted(node: Any) -> Any:
    """A schema without least lengths: what callers write may become shorter."""
    match node:
        case dict():
            return {name: lifted(each) for name, each in node.items() if name != "minLength"}
        case list():
            return [lifted(each) for each in node]
        case _:
            return node


def parts(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The document itself and its definitions, by name."""
    return {"": document, **document.get("$defs", {})}


def breaches(old: dict[str, Any], new: dict[str, Any], *, read_here: bool) -> list[str]:
    """The changes that break a reader of the old document, or with `read_here` a writer."""
    found, now = [], parts(new)
    for name, was in parts(old).items():
        if name not in now:
            found.append(f"{name} is gone")
            continue
        found += [f"{name}: {each}" for each in _changes(was, now[name], read_here=read_here)]
    return found


def _changes(was: dict[str, Any], now: dict[str, Any], *, read_here: bool) -> Iterator[str]:
    for field, about in was.get("properties", {}).items():
        is_now = shape(now.get("properties", {}).get(field))
        if is_now != shape(about) and not (read_here and is_now == lifted(shape(about))):
            yield f"{field} has changed"
    before, after = (set(each.get("required", ())) for each in (was, now))
    if missing := (after - before) if read_here else (before - after):
        yield f"{sorted(missing)} became required, or are not any more"
    for word in ("enum", "oneOf"):  # these may grow
        if any(shape(each) not in shape(now.get(word, [])) for each in was.get(word, ())):
            yield f"{word} lacks some"
    rest = {*was, *now} - _WORDS - {"properties", "required", "enum", "oneOf", "$defs", "$id"}
    rest -= {"discriminator"}  # its map of types grows, as `oneOf` does
    yield from (
        f"{each} has changed" for each in rest if shape(was.get(each)) != shape(now.get(each))
    )


def test_the_previous_versions_schemas_hold(previous: Path) -> None:
    """No file, object or field is gone or changed; no field that callers write became required."""
    folder = previous / "api_contracts" / "schema" / "v1"
    for file in sorted(folder.glob("*.json")):
        if file.name == "asyncapi.json":
            continue
        old, new = json.loads(file.read_text()), json_schemas.documents()[file.name]
        assert breaches(old, new, read_here=file.name in READ_HERE) == [], file.name


def test_the_previous_versions_channels_hold(previous: Path) -> None:
    """No channel, message or operation is gone, and no address has changed."""
    file = previous / "api_contracts" / "schema" / "v1" / "asyncapi.json"
    old, new = json.loads(file.read_text()), json_schemas.documents()["asyncapi.json"]
    for name, channel in old["channels"].items():
        assert new["channels"][name]["address"] == channel["address"]
        assert set(channel["messages"]) <= set(new["channels"][name]["messages"])
    assert set(old["operations"]) <= set(new["operations"])


@pytest.mark.parametrize("read_here", [True, False])
def test_breaches_of_an_object_are_found(read_here: bool) -> None:
    """A field that is gone, of another type, with a narrower limit, or newly required."""
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


def test_a_least_length_may_be_lifted() -> None:
    """Where callers write, and nowhere else; a new one is a breach everywhere."""
    short, free = ({"properties": {"a": each}} for each in ({"minLength": 1}, {}))
    assert breaches(short, free, read_here=True) == []
    assert breaches(short, free, read_here=False)
    assert breaches(free, short, read_here=True)


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
def test_breaches_of_other_types_are_found(was: dict[str, Any], now: dict[str, Any]) -> None:
    """A narrower enum, choice, list or type, and new `additionalProperties`."""
    old, new = ({"$defs": {"D": each}} for each in (was, now))
    assert breaches(old, new, read_here=True)
    assert not breaches(old, old, read_here=True)
