"""Validates messages before Celery sees them, so that none can stop the worker.

`envelope` builds the message that kombu expects from an entry of a Redis list; `normalize` makes
its headers and body what Celery expects. An invalid message with a task id becomes a call that
fails with `invalid_request`; one without is dropped and logged. Later code trusts its types.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kombu.exceptions import KombuError
from kombu.serialization import loads

from api_contracts.errors import InvalidRequest
from api_contracts.names import PRIORITIES, TASK_NAME, is_task_id
from api_contracts.parse import parse_request

if TYPE_CHECKING:
    from kombu import Message

#: Name of the keyword argument with the reason why the message is refused.
UNREADABLE = "__unreadable__"
#: Header with the Unix time after which the task must not start, from Celery's `expires`.
NOT_AFTER = "not_after_s"
#: Header that says whether Celery is to store a result, from its `ignore_result`.
WANTS_RESULT = "wants_result"
#: Header with the sender's span, in W3C's form.
TRACEPARENT = "traceparent"
#: Header with a body's compression; under its own name kombu would decompress any amount of data.
COMPRESSED = "was-compressed"
#: Larger bodies are validated here, before they reach a slot; in bytes. Parsed JSON takes fifty
#: times its length in memory: large invalid requests must not be parsed in all slots at once.
LARGE_BYTES = 64 * 2**10
_ACCEPTED = {"application/json"}
#: Tasks that Celery would send after this one; an error in sending them would keep the slot.
_FOLLOW_UPS = ("callbacks", "errbacks", "chain", "chord")
#: What kombu and its codecs raise for a body or its content type.
_UNREADABLE = (KombuError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
#: Longest reason of a refused request, in characters.
_REFUSAL_CHARS = 500
#: Longest part of a malformed message that is repeated in a reason, in characters.
_ECHO_CHARS = 200


def envelope(entry: Any, queue: str, tag: str, list_priority: int) -> dict[str, Any]:  # noqa: ANN401  # any JSON
    """An entry of a queue's list as kombu expects a message; `tag` is this delivery's.

    The message's priority is its own, but not before that of its list. (Plain Celery puts messages
    of the priorities 3 to 5 into list 3.)

    A body that can't be decoded becomes None, which `normalize` refuses. Raises TypeError for an
    entry without headers: it has no task id.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("headers"), dict):
        raise TypeError("it has no headers")
    headers, body = dict(entry["headers"]), entry.get("body")
    given = entry.get("properties")
    properties = dict(given) if isinstance(given, dict) else {}
    info, encoding = properties.get("delivery_info"), properties.get("body_encoding")
    own = properties.get("priority")
    own_priority = min(own, PRIORITIES[-1]) if isinstance(own, int) else list_priority
    if (compression := headers.pop("compression", None)) is not None:
        headers[COMPRESSED], body = compression, None
    if not _decodes(body, encoding):
        body, encoding = None, None
    properties |= {
        "body_encoding": encoding,
        # Of this delivery alone: a former holder of the message can't acknowledge it.
        "delivery_tag": tag,
        "priority": max(own_priority, list_priority),
        # The anonymous exchange routes by the queue's name alone.
        "delivery_info": {
            "exchange": "",
            "routing_key": queue,
            "redelivered": isinstance(info, dict) and info.get("redelivered") is True,
            "list_priority": list_priority,
        },
    }
    return entry | {"headers": headers, "body": body, "properties": properties}


def normalize(message: Message) -> str | None:
    """Make the message one that Celery can handle, or return the reason to drop it."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    body, fault = _body(message)
    if "task" not in headers and isinstance(body, dict):  # Celery's protocol 1
        headers, fault = body, "task_protocol 1 is not served; send protocol 2"
    if headers.get("task") != TASK_NAME:
        return f"task {_echo(headers.get('task'))} is not {TASK_NAME}"
    if not is_task_id(headers.get("id")):
        return f"id {_echo(headers.get('id'))} is not a task id"
    fault = fault or _headers_fault(headers) or _body_fault(body)
    if fault is None and len(message.body) > LARGE_BYTES:
        fault = _request_fault(body)
    message.headers = _clean(headers)
    if fault is not None:
        message.body = json.dumps([[], {UNREADABLE: fault}, {}])
        message.content_type, message.content_encoding = "application/json", "utf-8"
    return None


def _decodes(body: object, encoding: object) -> bool:
    if not isinstance(body, str) or encoding not in (None, "base64"):
        return False
    try:
        base64.b64decode(body) if encoding else body.encode()
    except ValueError:
        return False
    return True


def _body(message: Message) -> tuple[Any, str | None]:
    if message.errors:
        return None, f"the body can't be decoded ({_echo(str(message.errors[0][1]))})"
    try:
        body = loads(message.body, message.content_type, message.content_encoding, _ACCEPTED)
    except _UNREADABLE as error:
        why = _echo(str(error))
        return None, f"the body is not JSON as {_echo(message.content_type)} ({why})"
    return body, None


def _body_fault(body: object) -> str | None:
    match body:
        case [list() | tuple() as args, dict() as kwargs, dict() | None as embed]:
            if args or set(kwargs) != {"request"}:  # Celery's own code fails on a `self`
                given = [*(f"argument {number}" for number in range(len(args))), *kwargs]
                return f"was called with {_echo(given[:10])}; one keyword argument, request"
            # Celery overwrites its own request with any other entry, such as an id.
            given = [
                name for name, value in (embed or {}).items() if value or name not in _FOLLOW_UPS
            ]
            return f"{_echo(given)}: not served; wait for the result" if given else None
        case _:
            return "the body is not [args, kwargs, embed]"


def _request_fault(body: Any) -> str | None:  # noqa: ANN401  # args, kwargs, embed
    try:
        parse_request(body[1]["request"])
    except InvalidRequest as error:
        return f"the request is refused: {error}"[:_REFUSAL_CHARS]
    return None


def _headers_fault(headers: dict[str, Any]) -> str | None:
    if COMPRESSED in headers:
        return f"compression {_echo(headers[COMPRESSED])} is not served; send the body as it is"
    if headers.get("eta") is not None:
        return "eta and countdown are not served; send the task when it is due"
    if headers.get("expires") is not None and _not_after_s(headers) is None:
        return f"expires {_echo(headers['expires'])} is no time in ISO 8601"
    return None


def _not_after_s(headers: dict[str, Any]) -> float | None:
    """Celery's `expires` in Unix seconds. Celery would apply it before the task has a record."""
    try:
        at = datetime.fromisoformat(headers["expires"])
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _clean(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers that are used here, each of the type that Celery expects."""
    text = {
        name: headers[name]
        for name in ("root_id", "parent_id", "group", TRACEPARENT)
        if isinstance(headers.get(name), str)
    }
    return {
        "lang": "py",
        "task": TASK_NAME,
        "id": headers["id"],
        "root_id": text.get("root_id", headers["id"]),
        "parent_id": text.get("parent_id"),
        "group": text.get("group"),
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "",
        "kwargsrepr": "<request>",
        TRACEPARENT: text.get(TRACEPARENT),
        NOT_AFTER: _not_after_s(headers),
        WANTS_RESULT: headers.get("ignore_result") is not True,
    }


def _echo(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deep"
    return text[:_ECHO_CHARS].encode("ascii", "backslashreplace").decode()
