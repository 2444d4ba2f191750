"""What is published as version 1 is only added to: nobody who read it has to change anything."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import schemas

if TYPE_CHECKING:
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


def objects(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The objects that a document describes, by name."""
    found = {"": document, **document.get("$defs", {})}
    return {name: each for name, each in found.items() if "properties" in each}


def breaches(old: dict[str, Any], new: dict[str, Any], *, read_here: bool) -> list[str]:
    """What of a document a reader or a writer of the old one would stumble over."""
    found, now = [], objects(new)
    for name, was in objects(old).items():
        if name not in now:
            found.append(f"{name} is gone")
            continue
        for field, about in was["properties"].items():
            if shape(now[name]["properties"].get(field)) != shape(about):
                found.append(f"{name}.{field} is another")
        before, after = (set(each.get("required", ())) for each in (was, now[name]))
        if missing := (after - before) if read_here else (before - after):
            found.append(f"{name}: {sorted(missing)} must be there, or needn't any more")
    return found


def test_the_previous_versions_schemas_hold(previous: Path) -> None:
    """No file, object or field is gone or changed; none that others write is newly required."""
    folder = previous / "api_contracts" / "schema" / "v1"
    for file in sorted(folder.glob("*.json")):
        if file.name == "asyncapi.json":
            continue
        old, new = json.loads(file.read_text()), schemas.documents()[file.name]
        assert breaches(old, new, read_here=file.name in READ_HERE) == [], file.name


def test_the_previous_versions_channels_hold(previous: Path) -> None:
    """No channel, message or operation is gone, and none has another address."""
    file = previous / "api_contracts" / "schema" / "v1" / "asyncapi.json"
    old, new = json.loads(file.read_text()), schemas.documents()["asyncapi.json"]
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
