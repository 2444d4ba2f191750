"""What stands between Redis and Celery's consumer, so that no message can end the worker.

Celery and kombu assume well-formed messages: one that is not JSON ends the consumer's loop, and a
body that can't be decoded leaves its slot taken for ever. Here each message is put in order before
Celery sees it. One that has an id becomes a task that fails with `invalid_request`; of one that
has none only a line in the log remains.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery.worker.consumer import Consumer
from kombu.exceptions import KombuError
from kombu.serialization import loads
from kombu.transport import redis as kombu_redis
from redis import ConnectionPool

from api_contracts.names import TASK_NAME, is_task_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kombu import Message

logger = logging.getLogger(__name__)

#: Name of the keyword argument in which a message's fault travels to the task.
UNREADABLE = "__unreadable__"
_ACCEPTED = {"application/json"}
#: What kombu and its codecs raise over a body or its content type.
_UNREADABLE = (KombuError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
#: Longest piece of a broken message that is logged, in characters.
_ECHO_CHARS = 200


class Channel(kombu_redis.Channel):
    """kombu's channel, minus three ways in which it ends the worker.

    What is no message at all is dropped, where kombu would let the error through. A channel that
    a restart of Redis closed neither puts its messages back while their tasks still run, nor
    fails when they are acknowledged later: it does so over a connection of its own.
    """

    #: The tasks run on; they acknowledge or give back each message themselves.
    do_restore = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # kombu's signature
        super().__init__(*args, **kwargs)
        self._late = self._connparams()

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:  # noqa: ANN401  # kombu's signature
        """A Redis client, also after the channel was closed."""
        if client is not None or self.connection is not None:
            with super().conn_or_acquire(client) as usual:
                yield usual
            return
        pool = ConnectionPool(**self._late)
        try:
            yield self.Client(connection_pool=pool)
        finally:
            pool.disconnect()

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> Any:  # noqa: ANN401  # kombu's signature
        """The queues of a routing key; here each is named by it."""
        if self.connection is None:
            return [routing_key]
        return super()._lookup(exchange, routing_key, default)

    def _brpop_read(self, **options: Any) -> Any:  # noqa: ANN401  # kombu's signature
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # The entry has left its list and was never acknowledged or answered to anybody:
            # it had no id that could be read.
            logger.warning("dropped an entry that is no message: %.200r", error)
            return True


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with the channel above."""

    Channel = Channel


class TolerantConsumer(Consumer):
    """Celery's consumer, given only messages that it can handle."""

    def on_decode_error(self, message: Message, exc: Exception) -> None:  # noqa: ARG002  # Celery's signature
        """Answer a message whose compression can't be undone; Celery would only drop it."""
        self.task_consumer.on_message(message)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:  # noqa: ANN401  # Celery's signature
        """Celery's handler behind `put_in_order`."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Message) -> None:
            reason = put_in_order(message)
            if reason is not None:
                logger.warning("rejected a message: %s", reason)
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


def put_in_order(message: Message) -> str | None:
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
    message.headers = _clean(headers)
    if fault is not None:
        message.body = json.dumps([[], {UNREADABLE: fault}, {}])
        message.content_type, message.content_encoding = "application/json", "utf-8"
    return None


def _body(message: Message) -> tuple[Any, str | None]:
    if message.errors:
        return None, f"the body can't be unpacked ({_echo(message.errors[0][1])})"
    try:
        body = loads(message.body, message.content_type, message.content_encoding, _ACCEPTED)
    except _UNREADABLE as error:
        why = _echo(error)
        return None, f"the body is not JSON as {_echo(message.content_type)} ({why})"
    return body, None


def _body_fault(body: object) -> str | None:
    match body:
        case [list() | tuple(), dict(), dict() | None as embed]:
            signatures = [
                signature
                for name in ("callbacks", "errbacks", "chain")
                for signature in _listed((embed or {}).get(name))
            ]
            if all(isinstance(each, dict) and "task" in each for each in signatures):
                return None
            return "callbacks, errbacks and chain are not lists of signatures"
        case _:
            return "the body is not [args, kwargs, embed]"


def _listed(value: object) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _headers_fault(headers: dict[str, Any]) -> str | None:
    if headers.get("eta") is not None:
        return "eta and countdown are not served; send the task when it is due"
    if headers.get("expires") is not None:
        return "expires is not served; use the request's deadline_s"
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
        "ignore_result": headers.get("ignore_result") is True,
    }


def _echo(value: object) -> str:
    return repr(value)[:_ECHO_CHARS].encode("ascii", "backslashreplace").decode()
