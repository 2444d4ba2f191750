"""Lua scripts, each in a `.lua` file, whose keys and arguments are passed by name.

A script names them itself, in this form, so that their order is written in one place:

    local task, events = unpack(KEYS)
    local id, fence = unpack(ARGV)
    local kinds = {unpack(ARGV, 3)}

The last form takes any number of values at the end. `append_event.lua` is put before each script.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

#: None is passed as the empty string, by which scripts mean a value that was left out.
Value = str | bytes | int | float | None

_NAMES = re.compile(r"^local ([\w,\s]+) = unpack\((KEYS|ARGV)\)$", re.MULTILINE)
_REST = re.compile(r"^local (\w+) = \{unpack\((KEYS|ARGV), (\d+)\)\}$", re.MULTILINE)


@dataclass(frozen=True)
class Script:
    """A script's text and the names of its keys and arguments; `*name` takes all that remain."""

    name: str
    source: str
    keys: tuple[str, ...]
    args: tuple[str, ...]

    @property
    def sha(self) -> str:
        """The digest under which Redis caches the script."""
        return _sha(self.source)

    def evalsha(self, **values: Value | Iterable[Value]) -> list[Any]:
        """The arguments of an EVALSHA call; raises TypeError for a missing or an unknown name."""
        keys, args = self.ordered(values)
        return [self.sha, len(keys), *keys, *args]

    def ordered(self, values: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
        """Keys and arguments in the script's order; raises TypeError as `evalsha` does."""
        known = {name.removeprefix("*") for name in (*self.keys, *self.args)}
        if known != values.keys():
            missing, unknown = sorted(known - values.keys()), sorted(values.keys() - known)
            raise TypeError(f"{self.name}.lua: missing {missing}, unknown {unknown}")
        return _flat(self.keys, values), _flat(self.args, values)


@cache
def text(package: str, name: str) -> str:
    """The text of script `name`.lua of `package`, with the shared text before it."""
    shared = files("api_contracts.redis_io").joinpath("lua", "append_event.lua").read_text()
    return shared + files(package).joinpath("lua", f"{name}.lua").read_text()


@cache
def read(package: str, name: str) -> Script:
    """Script `name`.lua of `package`."""
    source = text(package, name)
    taken: dict[str, list[str]] = {"KEYS": [], "ARGV": []}
    for names, kind in _NAMES.findall(source):
        taken[kind] += re.split(r",\s*", names)
    for rest, kind, first in _REST.findall(source):
        if int(first) != len(taken[kind]) + 1:
            raise ValueError(f"{name}.lua: {rest} begins at {kind}[{first}]")
        taken[kind].append(f"*{rest}")
    return Script(name, source, tuple(taken["KEYS"]), tuple(taken["ARGV"]))


def load(redis: Redis | AsyncRedis, package: str, name: str) -> Callable[..., Any]:
    """Script `name`.lua of `package` as a function of its keys and arguments, by name.

    `client`, a pipeline, runs it instead of `redis`. With an `AsyncRedis` the answer is awaited.
    """
    script = read(package, name)
    run = redis.register_script(script.source)

    def call(client: Any = None, **values: Value | Iterable[Value]) -> Any:  # noqa: ANN401  # redis-py's own replies
        keys, args = script.ordered(values)
        return run(keys=keys, args=args, client=client)

    return call


def event_tail(task_id: str, kind: str, fields: Mapping[str, Any]) -> str:
    """An event's JSON but for its opening brace, `seq` and `attempt`, which the script adds."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"task_id": task_id, "at": at, "type": kind, **fields})[1:]


@cache
def _sha(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def _flat(names: Iterable[str], values: Mapping[str, Any]) -> list[Any]:
    """The values in the order of the names, as redis-py can send them."""
    flat: list[Any] = []
    for name in names:
        if name.startswith("*"):
            flat += values[name[1:]]
        else:
            flat.append(values[name])
    return ["" if each is None else int(each) if isinstance(each, bool) else each for each in flat]
