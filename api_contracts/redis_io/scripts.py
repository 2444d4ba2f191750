"""Redis scripts: each a `.lua` file, with the shared text that numbers events put before it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis
    from redis.commands.core import Script


@cache
def text(package: str, name: str) -> str:
    """The script `name`.lua of `package`, with the shared text before it."""
    shared = files("api_contracts.redis_io").joinpath("lua", "append_event.lua").read_text()
    return shared + files(package).joinpath("lua", f"{name}.lua").read_text()


@cache
def sha(source: str) -> str:
    """The name under which Redis keeps a script."""
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def load(redis: Redis, package: str, name: str) -> Script:
    """The script `name`.lua of `package`, callable with `keys` and `args`."""
    return redis.register_script(text(package, name))


def event_tail(task_id: str, kind: str, fields: Mapping[str, Any]) -> str:
    """An event's JSON but for its opening brace, `seq` and `attempt`, which the script adds."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"task_id": task_id, "at": at, "type": kind, **fields})[1:]
