"""kombu's Redis transport, minus the ways in which a message or an outage ends the worker.

Owns what lies between Redis's lists and a kombu message. What is in the message: see intake.
"""

from __future__ import annotations

import base64
import logging
import re
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kombu.transport import redis as kombu_redis
from redis import ConnectionPool

from worker.patience import persist

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Message

logger = logging.getLogger(__name__)

#: Header that says how a body was compressed: kombu would unpack any amount of it at once.
COMPRESSED = "was-compressed"
_TAG = re.compile(r"[\x21-\x7e]{1,128}\Z")


class QoS(kombu_redis.QoS):
    """kombu's book of the messages that are held; what was begun is finished when Redis is back."""

    def append(self, message: Message, delivery_tag: str) -> None:
        """Write down a message that has left its list: until then nobody else has it."""
        persist(lambda: super(QoS, self).append(message, delivery_tag))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's signature
        """Give a message back, or drop it."""
        persist(lambda: super(QoS, self).reject(delivery_tag, requeue))


class Channel(kombu_redis.Channel):
    """kombu's channel. An entry that is no JSON is dropped; kombu would let the error through.

    A channel that a restart of Redis closed neither puts its messages back while their tasks still
    run, nor fails when they are acknowledged later: it does so over a connection of its own.
    """

    QoS = QoS
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

    def _brpop_read(self, **options: Any) -> Any:  # noqa: ANN401  # kombu's signature
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.warning("dropped an entry that is no message: %.200r", error)
            return True


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with the channel above."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:  # noqa: ANN401  # any JSON
        try:
            whole = envelope(message, queue)
        except TypeError as error:
            logger.warning("dropped an entry of %s that is no message: %s", queue, error)
        else:
            super()._deliver(whole, queue)


def envelope(entry: Any, queue: str) -> dict[str, Any]:  # noqa: ANN401  # any JSON
    """An entry of a list with everything that kombu takes for granted around a message.

    A body that can't be unpacked is None, which intake answers. Raises TypeError for what has no
    headers, and so no task id.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("headers"), dict):
        message = "it has no headers"
        raise TypeError(message)
    headers, body = dict(entry["headers"]), entry.get("body")
    given = entry.get("properties")
    properties = dict(given) if isinstance(given, dict) else {}
    info = properties.get("delivery_info")
    tag, encoding = properties.get("delivery_tag"), properties.get("body_encoding")
    if (compression := headers.pop("compression", None)) is not None:
        headers[COMPRESSED], body = compression, None
    if not _decodes(body, encoding):
        body, encoding = None, None
    properties |= {
        "body_encoding": encoding,
        "delivery_tag": tag if isinstance(tag, str) and _TAG.match(tag) else str(uuid.uuid4()),
        # The anonymous exchange routes by the queue's name alone, also when a message goes back.
        "delivery_info": {
            "exchange": "",
            "routing_key": queue,
            "redelivered": isinstance(info, dict) and info.get("redelivered") is True,
        },
    }
    return entry | {"headers": headers, "body": body, "properties": properties}


def _decodes(body: object, encoding: object) -> bool:
    if not isinstance(body, str) or encoding not in (None, "base64"):
        return False
    try:
        base64.b64decode(body) if encoding else body.encode()
    except ValueError:
        return False
    return True
