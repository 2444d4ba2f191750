"""What stands before Celery's consumer, so that no message can end the worker.

Celery assumes well-formed messages: a body that can't be decoded leaves its slot taken for ever.
Here each message is put in order before Celery sees it. One that has an id becomes a task that
fails with `invalid_request`; of one that has none only a line in the log remains.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery.worker.consumer import Consumer
from kombu.exceptions import KombuError
from kombu.serialization import loads

from api_contracts.errors import InvalidRequest
from api_contracts.names import TASK_NAME, is_task_id
from api_contracts.parse import parse_request
from worker import metrics
from worker.broker.transport import COMPRESSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Message

logger = logging.getLogger(__name__)

#: Name of the keyword argument in which a message's fault travels to the task.
UNREADABLE = "__unreadable__"
#: Header of the Unix time after which a message is not to be begun, from Celery's `expires`.
NOT_AFTER = "not_after_s"
#: Header that says whether Celery is to keep a result, from its `ignore_result`.
WANTS_RESULT = "wants_result"
_ACCEPTED = {"application/json"}
#: What Celery would send when the task has ended; what goes wrong there would hold up a slot.
_FOLLOW_UPS = ("callbacks", "errbacks", "chain", "chord")
#: What kombu and its codecs raise over a body or its content type.
_UNREADABLE = (KombuError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
#: Longest body that goes to a slot unread, in bytes. JSON takes fifty times its length in memory:
#: what is refused anyway must not do so in all slots at once, which nobody would outlive.
LARGE_BYTES = 64 * 2**10
#: Longest account of what is wrong with one that does not, in characters.
_REFUSAL_CHARS = 500
#: Longest piece of a broken message that is logged, in characters.
_ECHO_CHARS = 200


class TolerantConsumer(Consumer):
    """Celery's consumer, given only messages that it can handle."""

    def on_decode_error(self, message: Message, exc: Exception) -> None:  # noqa: ARG002  # Celery's signature
        """Answer a message whose body kombu can't unpack; Celery would only drop it."""
        self.task_consumer.on_message(message)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:  # noqa: ANN401  # Celery's signature
        """Celery's handler behind `normalize`."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Message) -> None:
            try:
                reason = normalize(message)
            except Exception as error:  # noqa: BLE001  # nothing that somebody sends ends the worker
                reason = f"it can't be put in order: {type(error).__name__}"
            if reason is not None:
                metrics.reject("no_task", reason)
                message.reject_log_error(logger, self.connection_errors)
                return
            try:
                handle(message)
            except self.connection_errors:
                raise
            except Exception:
                logger.exception("Celery could not handle message %s", message.headers.get("id"))
                message.reject_log_error(logger, self.connection_errors)

        return on_message


def normalize(message: Message) -> str | None:
    """Make the message one that Celery can handle, or say why nobody can be answered."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    body, fault = _body(message)
    if "task" not in headers and isinstance(body, dict):  # Celery's protocol 1
        headers, fault = body, "task_protocol 1 is not served; send protocol 2"
    if headers.get("task") != TASK_NAME:
        return f"task {_echo(headers.get('task'))} is not {TASK_NAME}"
    if not is_task_id(headers.get("id")):
        return f"id {_echo(headers.get('id'))} is not a task id"
    fault = fault or _headers_fault(headers)
    fault = fault or _body_fault(body)
    if fault is None and len(message.body) > LARGE_BYTES:
        fault = _request_fault(body)
    message.headers = _clean(headers)
    if fault is not None:
        message.body = json.dumps([[], {UNREADABLE: fault}, {}])
        message.content_type, message.content_encoding = "application/json", "utf-8"
    return None


def _body(message: Message) -> tuple[Any, str | None]:
    if message.errors:
        return None, f"the body can't be unpacked ({_echo(str(message.errors[0][1]))})"
    try:
        body = loads(message.body, message.content_type, message.content_encoding, _ACCEPTED)
    except _UNREADABLE as error:
        why = _echo(str(error))
        return None, f"the body is not JSON as {_echo(message.content_type)} ({why})"
    return body, None


def _body_fault(body: object) -> str | None:
    match body:
        case [list() | tuple() as args, dict() as kwargs, dict() | None as embed]:
            if args or set(kwargs) != {"request"}:  # Celery's own code falls over a `self`
                given = [*(f"argument {number}" for number in range(len(args))), *kwargs]
                return f"was called with {_echo(given[:10])}; one keyword argument, request"
            # Celery would write whatever else is there over its own request: its id, for one.
            given = [
                name for name, value in (embed or {}).items() if value or name not in _FOLLOW_UPS
            ]
            return f"{_echo(given)}: not served; wait for the result" if given else None
        case _:
            return "the body is not [args, kwargs, embed]"


def _request_fault(body: Any) -> str | None:  # noqa: ANN401  # args, kwargs, embed
    try:
        parse_request(body[1].get("request"))
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
    """Celery's `expires`, which Celery itself would obey before the record hears of the task."""
    try:
        at = datetime.fromisoformat(headers["expires"])
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _clean(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers that mean something here, each of the type that Celery takes for granted."""
    parent = headers.get("parent_id")
    root = headers.get("root_id")
    return {
        "lang": "py",
        "task": TASK_NAME,
        "id": headers["id"],
        "root_id": root if isinstance(root, str) else headers["id"],
        "parent_id": parent if isinstance(parent, str) else None,
        "group": headers["group"] if isinstance(headers.get("group"), str) else None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "",
        "kwargsrepr": "<request>",
        NOT_AFTER: _not_after_s(headers),
        WANTS_RESULT: headers.get("ignore_result") is not True,
    }


def _echo(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deep"
    return text[:_ECHO_CHARS].encode("ascii", "backslashreplace").decode()
