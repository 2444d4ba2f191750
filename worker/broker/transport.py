"""kombu's Redis transport, minus the ways in which it loses a message or ends the worker.

Owns what lies between Redis's lists and a kombu message. What is in the message: see intake.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from contextlib import contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from redis import ConnectionPool
from redis.exceptions import NoScriptError, ResponseError

from api_contracts.redis_io import scripts
from api_contracts.redis_io.connection import is_away
from worker import metrics
from worker.broker.held_messages import (
    MAX_MESSAGE_BYTES,
    UNACKED,
    UNACKED_INDEX,
    HeldMessages,
    new_tag,
)
from worker.redis_retry import retry_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Message

logger = logging.getLogger(__name__)

#: Header that says how a body was compressed: kombu would unpack any amount of it at once.
COMPRESSED = "was-compressed"
#: Pause between two looks into empty lists, in seconds. kombu waits inside Redis instead, which
#: hands the message out before anybody has written down who has it.
LOOK_S = 0.025
#: Longest wait for the answer to such a look, in seconds.
SILENCE_S = 5.0
#: Pause after Redis refused to give a message for a reason that passes, in seconds.
REFUSED_S = 1.0
TAKE = scripts.read("worker.broker", "take")


#: What turns an event loop, one connection after the other.
_TURNS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class QoS(kombu_redis.QoS):
    """kombu's book of the messages that are held; what was begun is finished when Redis is back."""

    def append(self, message: Message, delivery_tag: str) -> None:
        """Remember a message; `take.lua` has written it down already."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Drop a message. Whether or not Redis hears of it, it takes no slot any more."""
        try:
            self.forget(delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's signature
        """Give a message back, behind those that wait, or drop it."""
        if not requeue:
            self.ack(delivery_tag)
            return
        try:
            with self.channel.conn_or_acquire() as client:
                retry_redis(lambda: HeldMessages(client).put_back(delivery_tag, first=False))
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def forget(self, delivery_tag: str) -> None:
        """Drop what was taken and is no message."""
        retry_redis(lambda: self._remove_from_indices(delivery_tag).execute())

    def restore_visible(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  # kombu's signature
        """Do nothing: the reconciler looks for leases that have run out, by Redis's clock."""


class Channel(kombu_redis.Channel):
    """kombu's channel, which takes a message in one step.

    A channel that a restart of Redis closed neither puts its messages back while their tasks still
    run, nor fails when they are acknowledged later: it does so over a connection of its own.
    """

    QoS = QoS
    unacked_key, unacked_index_key = UNACKED, UNACKED_INDEX
    #: The tasks run on; they acknowledge or give back each message themselves.
    do_restore = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # kombu's signature
        super().__init__(*args, **kwargs)
        self._late = self._connparams()
        options = self.connection.client.transport_options
        self._owner, self._lease_s = options.get("owner", "unnamed"), options.get("lease_s", 60)
        self.may_take = options.get("may_take", lambda: True)
        self._looked_s = float("-inf")
        self._asked: tuple[str, list[str]] = "", []

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

    def drop_stale_connection(self) -> None:
        """Drop the connection on which an answer is overdue: its other end may be gone.

        kombu does so too, but after 20 s, in which no task would be taken.
        """
        connection = self._in_poll
        if not connection or time.monotonic() - self._brpop_sent_at < SILENCE_S:
            return
        sock = connection._sock  # noqa: SLF001  # as kombu's own check does
        if sock is not None and not kombu_redis._socket_readable(sock):  # noqa: SLF001  # as above
            logger.warning("Redis did not answer for %g s; connecting anew", SILENCE_S)
            connection.disconnect()

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002  # kombu's signature
        """Ask for the next message; its answer is read by `_brpop_read`.

        Not when this process would claim no task. (Nor by kombu's own way to say so, with which
        commands would go unheard too.)
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        now_s = time.monotonic()
        if not queues or now_s - self._looked_s < LOOK_S or not self.may_take():
            return
        pairs = [
            (self._q_for_pri(queue, each), queue)
            for each in self.priority_steps
            for queue in queues
        ]
        lists, queues = [name for name, _ in pairs], [queue for _, queue in pairs]
        self._asked = new_tag(self._owner), queues
        self._in_poll, self._brpop_sent_at = self.client.connection, now_s
        call = TAKE.evalsha(
            unacked=UNACKED,
            unacked_index=UNACKED_INDEX,
            lists=lists,
            tag=self._asked[0],
            lease_s=self._lease_s,
            max_bytes=MAX_MESSAGE_BYTES,
            queues=queues,
        )
        self.client.connection.send_command("EVALSHA", *call)

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401  # kombu's signature
        (tag, queues), connection = self._asked, self.client.connection
        try:
            answer = self.client.parse_response(connection, "EVALSHA", **options)
        except NoScriptError:
            self.client.script_load(TAKE.source)
            raise Empty from None
        except self.connection_errors:
            connection.disconnect()  # the next look makes a new one
            raise
        except ResponseError as error:
            if not is_away(error):
                raise
            logger.warning("no message taken: %s", error)
            self._looked_s = time.monotonic() + REFUSED_S
            raise Empty from error
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if not answer:
            self._looked_s = time.monotonic()
            raise Empty
        self._taken(tag, queues[answer[0]], answer[1], *answer[2:])
        return True

    def _taken(self, tag: str, queue: str, entry: bytes, too_large: int = 0) -> None:
        """Hand a message on; what is none is dropped, and counted."""
        try:
            if too_large:
                raise TypeError(f"it has {too_large} bytes of at most {MAX_MESSAGE_BYTES}")  # noqa: TRY301  # one place for all
            whole = envelope(json.loads(entry), queue, tag)
        except (ValueError, TypeError, RecursionError) as error:
            self.qos.forget(tag)
            # Its text: the repr of an error of decoding has the message in it, prompt and all.
            metrics.reject("too_large" if too_large else "no_message", f"{queue}: {error!s:.200}")
        else:
            self.connection._deliver(whole, queue)  # noqa: SLF001  # as kombu's own channel does


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with the channel above."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ANN401  # kombu's signature
        """Let the event loop turn often enough to look for messages."""
        super().register_with_event_loop(connection, loop)
        if (former := _TURNS.pop(loop, None)) is not None:
            former.cancel()  # of a connection that is gone: it would turn the loop for ever
        _TURNS[loop] = loop.call_repeatedly(LOOK_S, self._turn)

    def _turn(self) -> None:
        """Make the loop turn, as it looks for messages at each turn; leave a dead connection."""
        for channel in list(self.channels):
            channel.drop_stale_connection()


def envelope(entry: Any, queue: str, tag: str) -> dict[str, Any]:  # noqa: ANN401  # any JSON
    """An entry of a list with everything that kombu takes for granted around a message.

    A body that can't be unpacked is None, which intake answers. Raises TypeError for what has no
    headers, and so no task id.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("headers"), dict):
        raise TypeError("it has no headers")
    headers, body = dict(entry["headers"]), entry.get("body")
    given = entry.get("properties")
    properties = dict(given) if isinstance(given, dict) else {}
    info, encoding = properties.get("delivery_info"), properties.get("body_encoding")
    if (compression := headers.pop("compression", None)) is not None:
        headers[COMPRESSED], body = compression, None
    if not _decodes(body, encoding):
        body, encoding = None, None
    properties |= {
        "body_encoding": encoding,
        # Of this delivery alone: whoever had the message before can't acknowledge it any more.
        "delivery_tag": tag,
        # The anonymous exchange routes by the queue's name alone.
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
