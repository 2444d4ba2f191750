"""kombu's Redis transport, changed where it would lose a message or let one stop the worker.

Moves messages between Redis's lists and kombu; `validate_message` checks their content. Every
function of kombu that is replaced or relied on is listed in `tests/record/upstream.py`, as a
checklist for upgrades of kombu.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from redis.exceptions import NoScriptError, ResponseError

from api_contracts.names import MAX_MESSAGE_BYTES
from api_contracts.redis_io import pools, scripts, transport
from api_contracts.redis_io.connection import is_unavailable
from worker import metrics
from worker.broker.held_messages import (
    UNACKED,
    UNACKED_INDEX,
    HeldMessages,
    new_tag,
)
from worker.broker.validate_message import envelope
from worker.redis_retry import retry_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kombu import Message

logger = logging.getLogger(__name__)

#: Pause between two polls of empty lists, in seconds. kombu blocks in BRPOP instead, which removes
#: a message before its holder is recorded.
POLL_INTERVAL_S = 0.025
#: Longest wait for the answer to a poll, in seconds.
ANSWER_TIMEOUT_S = 5.0
#: Pause after Redis refused a poll for a temporary reason, in seconds.
REFUSED_PAUSE_S = 1.0
TAKE = scripts.read("worker.broker", "take")
#: The timer of each event loop that polls, so that a reconnect replaces it.
_POLL_TIMERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class Predicate:
    """A function among the transport options that JSON can show, as `inspect stats` does."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask

    def __call__(self) -> bool:
        """What the function returns."""
        return self._ask()

    def __json__(self) -> bool:
        """The same, for kombu's JSON encoder."""
        return self._ask()


class QoS(kombu_redis.QoS):
    """kombu's held messages. Failed acknowledgements and rejections are retried.

    Even when all retries fail, the message frees its slot.
    """

    def append(self, message: Message, delivery_tag: str) -> None:
        """Count a message; `take.lua` has written it to Redis already."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Delete a message."""
        try:
            self.drop(delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's signature
        """Requeue a message behind the waiting ones, or delete it."""
        if not requeue:
            self.ack(delivery_tag)
            return
        try:
            with self.channel.conn_or_acquire() as client:
                retry_redis(lambda: HeldMessages(client).requeue(delivery_tag, first=False))
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def drop(self, delivery_tag: str) -> None:
        """Delete a held entry."""
        retry_redis(lambda: self._remove_from_indices(delivery_tag).execute())

    def restore_visible(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  # kombu's signature
        """Do nothing: the reconciler requeues messages whose lease has expired."""


class Channel(transport.Channel):
    """kombu's channel, which takes a message in one step.

    Messages taken over a channel that a restart of Redis closed stay held while their tasks run;
    they are acknowledged and rejected over a connection of their own.
    """

    QoS = QoS
    unacked_key, unacked_index_key = UNACKED, UNACKED_INDEX
    #: The tasks continue; each acknowledges or rejects its own message.
    do_restore = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # kombu's signature
        super().__init__(*args, **kwargs)
        self._late_connection = self.address, self._connparams()
        options = self.connection.client.transport_options
        self._owner, self._lease_s = options.get("owner", "unnamed"), options.get("lease_s", 60)
        self.may_take = options.get("may_take", lambda: True)
        #: No poll before this monotonic time.
        self._next_poll_s = float("-inf")
        #: Delivery tag and queues of the poll that waits for its answer.
        self._asked: tuple[str, list[str]] = "", []

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:  # noqa: ANN401  # kombu's signature
        """A Redis client; a new connection after the channel was closed."""
        if client is not None or self.connection is not None:
            with super().conn_or_acquire(client) as usual:
                yield usual
            return
        pool = pools.pool_of(*self._late_connection)
        try:
            yield self.Client(connection_pool=pool)
        finally:
            pool.disconnect()

    def drop_stale_connection(self) -> None:
        """Disconnect when the answer to a poll is overdue: the server may be gone.

        kombu's `maybe_check_brpop_health` does so too, but after 20 s without a message.
        """
        connection = self._in_poll
        if not connection or time.monotonic() - self._brpop_sent_at < ANSWER_TIMEOUT_S:
            return
        sock = connection._sock  # noqa: SLF001  # as kombu's own check does
        if sock is not None and not kombu_redis._socket_readable(sock):  # noqa: SLF001  # as above
            logger.warning("Redis did not answer for %g s; reconnecting", ANSWER_TIMEOUT_S)
            connection.disconnect()

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002  # kombu's signature
        """Poll for the next message, unless this process would not claim a task.

        (kombu's own way to pause consuming also pauses remote control.)
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        now_s = time.monotonic()
        if not queues or now_s < self._next_poll_s or not self.may_take():
            return
        pairs = [
            (self._q_for_pri(queue, each), queue)
            for each in self.priority_steps
            for queue in queues
        ]
        self._asked = new_tag(self._owner), [queue for _, queue in pairs]
        self._in_poll, self._brpop_sent_at = self.client.connection, now_s
        call = TAKE.evalsha(
            unacked=UNACKED,
            unacked_index=UNACKED_INDEX,
            lists=[name for name, _ in pairs],
            tag=self._asked[0],
            lease_s=self._lease_s,
            max_bytes=MAX_MESSAGE_BYTES,
            queues=self._asked[1],
        )
        self.client.connection.send_command("EVALSHA", *call)

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401  # kombu's signature
        """Read the answer to a poll and deliver its message; raises `Empty` without one."""
        (tag, queues), connection = self._asked, self.client.connection
        try:
            answer = self.client.parse_response(connection, "EVALSHA", **options)
        except NoScriptError:
            self.client.script_load(TAKE.source)
            raise Empty from None
        except self.connection_errors:
            connection.disconnect()  # the next poll reconnects
            raise
        except ResponseError as error:
            if not is_unavailable(error):
                raise
            logger.warning("no message taken: Redis refuses: %s", error)
            self._next_poll_s = time.monotonic() + REFUSED_PAUSE_S
            raise Empty from error
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if not answer:
            self._next_poll_s = time.monotonic() + POLL_INTERVAL_S
            raise Empty
        index, entry, *size = answer
        self._pass_on(tag, queues[index], entry, *size)
        return True

    def _pass_on(self, tag: str, queue: str, entry: bytes, too_large_bytes: int = 0) -> None:
        """Pass a message on to kombu; drop and count an entry that is not a message."""
        try:
            if too_large_bytes:
                raise TypeError(f"it has {too_large_bytes} bytes of at most {MAX_MESSAGE_BYTES}")  # noqa: TRY301  # one place for all
            message = envelope(json.loads(entry), queue, tag)
        except (ValueError, TypeError, RecursionError) as error:
            self.qos.drop(tag)
            # The error's text: the repr of a decoding error holds the message, prompt and all.
            reason = "too_large" if too_large_bytes else "no_message"
            metrics.reject(reason, f"{queue}: {error!s:.200}")
        else:
            self.connection._deliver(message, queue)  # noqa: SLF001  # as kombu's own channel does


class Transport(transport.Transport):
    """kombu's Redis transport with the channel above."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ANN401  # kombu's signature
        """Make the event loop poll every `POLL_INTERVAL_S`."""
        super().register_with_event_loop(connection, loop)
        if (former := _POLL_TIMERS.pop(loop, None)) is not None:
            former.cancel()  # of a connection that is gone
        _POLL_TIMERS[loop] = loop.call_repeatedly(POLL_INTERVAL_S, self._tick)

    def _tick(self) -> None:
        """Wake the loop, which polls in each iteration; drop stale connections."""
        for channel in list(self.channels):
            channel.drop_stale_connection()
