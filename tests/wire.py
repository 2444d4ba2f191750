"""Checks everything that the suite sends and stores against the published schemas.

Each Redis that a test starts is scanned before it ends: all events, all results and errors of
Celery, the request of every task that was started. Messages that kombu puts into a queue in this
process are recorded; if a worker started their task, they must match the schema, too.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from jsonschema import Draft202012Validator
from kombu.transport.redis import Channel
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api_contracts.client import sender
from api_contracts.message import task_message
from api_contracts.names import queue_name
from api_contracts.schemas import json_schemas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

#: Words in the names of keys that tests write by hand, which are not checked. The namespaces of
#: workers contain none of them.
ODD = ("odd", "junk")
_KINDS = tuple(json_schemas.kinds())
#: Messages that were sent from this process, by task id.
_sent: dict[str, list[dict[str, Any]]] = {}


@cache
def validator(name: str) -> Draft202012Validator:
    """The published schema `name`.json."""
    return Draft202012Validator(json.loads((json_schemas.FOLDER / f"{name}.json").read_text()))


def faults(name: str, instance: object) -> list[str]:
    """The errors of `instance` by the published schema `name`."""
    return [
        f"{name} {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in validator(name).iter_errors(instance)
    ]


def watched(
    start: Callable[..., AbstractContextManager[str]],
) -> Callable[..., AbstractContextManager[str]]:
    """`redis_server` that fails at its end when its content breaks a published schema."""

    @contextmanager
    def redis_server(folder: Path, port: int | None = None) -> Iterator[str]:
        with start(folder, port) as url:
            yield url
            found: list[str] = []
            with suppress(RedisConnectionError, RedisTimeoutError):  # the test ended or stopped it
                found.extend(f"{name}: {fault}" for name, fault in unpublished(url))
            assert not found, "\n".join(found[:20])

    return redis_server


def record_messages() -> None:
    """Record the messages that kombu and our clients put into the queues of tasks from now on."""
    put, build = Channel._put, task_message

    def recording(self: Any, queue: str, message: dict[str, Any], **more: Any) -> None:
        if queue.startswith(queue_name("")):
            task_id = message.get("headers", {}).get("id")
            _sent.setdefault(str(task_id), []).append(json.loads(json.dumps(message)))
        put(self, queue, message, **more)

    def building(task_id: str, request: str, queue: str, priority: int) -> str:
        message = build(task_id, request, queue, priority)
        _sent.setdefault(task_id, []).append(json.loads(message))
        return message

    Channel._put = recording
    vars(sender)["task_message"] = building


def unpublished(url: str) -> Iterator[tuple[str, str]]:
    """Violations of the published schemas in a Redis: the key, and the error."""
    with Redis.from_url(url, protocol=2, socket_timeout=5) as redis:
        for key in redis.scan_iter(count=1000):
            name = key.decode(errors="replace")
            if any(word in name for word in ODD):
                continue
            if name.endswith(":events"):
                found = _of_stream(redis, name)
            elif name.startswith("celery-task-meta-"):
                found = _of_result(redis, name)
            else:
                continue
            try:
                yield from ((name, fault) for fault in found)
            except (ResponseError, ValueError, LookupError, RecursionError) as error:
                yield name, f"can't be read: {error!r}"


def _of_stream(redis: Redis, name: str) -> Iterator[str]:
    """Errors of a stream's events and, if its task was started, of its request and messages."""
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", redis.xrange(name))
    events = [json.loads(fields[b"event"]) for _, fields in entries]
    for event in events:
        kind = event["type"]
        yield from faults(f"event-{kind}" if kind in _KINDS else "event", event)
    if any(event["type"] == "started" for event in events):
        request = redis.hget(name.removesuffix(":events") + ":task", "request")
        yield from faults("request", json.loads(request or b"null"))
        for message in _sent.get(events[0]["task_id"], ()):
            yield from faults("message", message)


def _of_result(redis: Redis, name: str) -> Iterator[str]:
    meta = json.loads(cast("bytes", redis.get(name)))
    match meta["status"]:
        case "SUCCESS":
            yield from faults("result", meta["result"])
        case "FAILURE" if meta["result"]["exc_type"] in ("GenerationFailed", "GenerationExpired"):
            names = ("code", "message", "retryable", "details")
            error = dict(zip(names, meta["result"]["exc_message"], strict=True))
            yield from faults("error", error)
