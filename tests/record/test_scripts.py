"""Lua scripts: keys and arguments are passed by name, and each name stands in the script."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.redis_io import scripts
from api_contracts.redis_io.scripts import Script, load, read

if TYPE_CHECKING:
    from redis import Redis

SCRIPTS = [
    (package, each.name.removesuffix(".lua"))
    for package in ("api_contracts.redis_io", "worker.broker", "worker.record")
    for each in files(package).joinpath("lua").iterdir()
    if each.name not in ("append_event.lua", "__pycache__")
]
CLOSE: dict[str, Any] = {
    "task": "t", "events": "e", "open": "o", "checkpoint": "c", "pushes": "p", "id": "x",
    "record_ttl_s": 1.5, "kinds": ["a", "b"],
}  # fmt: skip


@pytest.mark.parametrize(("package", "name"), SCRIPTS)
def test_a_script_names_all_that_it_takes(package: str, name: str) -> None:
    """A script reads keys and arguments by position in one place, and its table names them."""
    script = read(package, name)
    own = files(package).joinpath("lua", f"{name}.lua").read_text()
    names = [each.removeprefix("*") for each in (*script.keys, *script.args)]
    assert script.keys
    assert len(set(names)) == len(names)
    declarations = len(re.findall(r"^local [^=]+ = \{?unpack\((?:KEYS|ARGV)", own, re.MULTILINE))
    assert len(re.findall(r"\b(?:KEYS|ARGV)\b", own)) == declarations
    table = own.split("\n--\n", 2)[1]
    assert re.findall(r"^-- (\w+)(?:  |$)", table, re.MULTILINE) == names


def test_values_go_where_the_script_has_their_names() -> None:
    """Values go to a script in the order of its keys and arguments, lists spread at their end."""
    script = read("worker.record", "close")
    assert script.evalsha(**CLOSE) == [
        script.sha, 5, "t", "e", "o", "c", "p", "x", 1.5, "a", "b"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sent"),
    [(None, ""), (True, 1), (False, 0), (0, 0), ("", ""), (1.5, 1.5), (b"x", b"x")],
)
def test_a_value_is_sent_as_redis_takes_it(given: scripts.Value, sent: object) -> None:
    """Redis gets None as an empty string, and a bool as 1 or 0."""
    assert Script("x", "", (), ("a",)).ordered({"a": given}) == ([], [sent])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": ...}, r"close.lua: missing \['task'\], unknown \[\]"),
        ({"kinds": ..., "kind": "a"}, r"close.lua: missing \['kinds'\], unknown \['kind'\]"),
        ({"fence": 1}, r"close.lua: missing \[\], unknown \['fence'\]"),
    ],
)
def test_a_wrong_name_is_an_error(redis: Redis, changes: dict[str, object], message: str) -> None:
    """A missing or unknown name raises TypeError before Redis is called."""
    values: dict[str, Any] = {
        name: value for name, value in (CLOSE | changes).items() if value is not ...
    }
    with pytest.raises(TypeError, match=message):
        load(redis, "worker.record", "close")(**values)


def test_a_list_begins_where_the_names_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that would skip a value or take one twice is refused when the script is read."""
    text = "local a, b = unpack(ARGV)\nlocal rest = {unpack(ARGV, 4)}\n"
    monkeypatch.setattr(scripts, "text", lambda *_: text)
    with pytest.raises(ValueError, match="rest begins at ARGV"):
        scripts.read.__wrapped__("x", "y")
