"""kombu's Redis transport, changed where it would lose a message or let one stop the worker.

Moves messages between Redis's lists and kombu; `validate_message` checks their content. Every
function of kombu that is replaced or relied on is listed in `tests/record/upstream.py`.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager, suppress
from queue import Empty
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from redis.exceptions import NoScriptError, RedisError, ResponseError

from api_contracts.names import MAX_MESSAGE_BYTES, PRIORITIES
from api_contracts.redis_io import pools, transport
from api_contracts.redis_io.connection import WRONG_TYPE, is_unavailable
from worker import metrics
from worker.broker.bindings import BindingChannel
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages
from worker.broker.held_requests import held_requests
from worker.broker.intake import TAKE, Intake, Taken, WaitingList
from worker.broker.queue_watch import WaitState
from worker.broker.validate_message import envelope
from worker.redis_retry import retry_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Message

logger = logging.getLogger(__name__)

#: Longest wait for an answer, in seconds: longer than Redis blocks.
ANSWER_TIMEOUT_S = 5.0
#: Time between two checks whether an answer is overdue, in seconds.
STALE_CHECK_S = 1.0
#: The timer of each event loop that checks, so that a reconnect replaces it.
_CHECK_TIMERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


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
            self._free_slot(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's signature
        """Requeue a message behind the waiting ones, or delete it."""
        if not requeue:
            self.ack(delivery_tag)
            return
        try:
            with self.channel.conn_or_acquire() as client:
                retry_redis(lambda: HeldMessages(client).requeue(delivery_tag, first=False))
        finally:
            self._free_slot(delivery_tag)

    def _free_slot(self, delivery_tag: str) -> None:
        virtual.QoS.ack(self, delivery_tag)
        self.channel.wake_for_more()

    def drop(self, delivery_tag: str) -> None:
        """Delete a held entry."""
        retry_redis(lambda: self._remove_from_indices(delivery_tag).execute())

    def restore_visible(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  # kombu's signature
        """Do nothing: the reconciler requeues messages whose lease has expired."""


class Channel(BindingChannel):
    """kombu's channel, which takes a message in one step.

    Messages taken over a channel that a restart of Redis closed stay held while their tasks run;
    they are acknowledged and rejected over a connection of their own.
    """

    QoS = QoS
    unacked_key, unacked_index_key = UNACKED, UNACKED_INDEX
    #: The tasks continue; each acknowledges or rejects its own message.
    do_restore = False
    _in_poll: Any  # kombu's: the connection whose answer is outstanding

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # kombu's signature
        super().__init__(*args, **kwargs)
        self._late_connection = self.address, self._connparams()
        options = self.connection.client.transport_options
        self.intake = Intake(
            options.get("owner", "unnamed"),
            options.get("lease_s", 60),
            options.get("wait_state") or WaitState(),
        )
        self.may_take = options.get("may_take", lambda: True)
        #: The last priority whose messages may be taken now.
        self.lowest_priority = options.get("lowest_priority", lambda: PRIORITIES[-1])

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

    def close(self) -> None:
        """Close; kombu would wait for the end of a wait for messages, for seconds."""
        if self._in_poll and self.intake.command == "BLPOP":
            self._in_poll = None
            self.client.connection.disconnect()
        super().close()

    def drop_stale_connection(self) -> None:
        """Disconnect when an answer is overdue: the server may be gone.

        kombu's `maybe_check_brpop_health` does so too, but after 20 s without a message.
        """
        connection = self._in_poll
        if not connection or time.monotonic() - self._brpop_sent_at < ANSWER_TIMEOUT_S:
            return
        sock = connection._sock  # noqa: SLF001  # as kombu's own check does
        if sock is not None and not kombu_redis._socket_readable(sock):  # noqa: SLF001  # as above
            logger.warning("Redis did not answer for %g s; reconnecting", ANSWER_TIMEOUT_S)
            self.intake.lost()
            connection.disconnect()

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002  # kombu's signature
        """Make the next call to Redis, unless this process would not claim a task.

        Only lists of priorities up to `lowest_priority` are offered.
        (kombu's own way to pause consuming also pauses remote control.)
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or self.intake.pause_s > 0 or not self.may_take():
            return
        lowest = self.lowest_priority()
        lists = [
            WaitingList(self._q_for_pri(queue, priority), queue, priority)
            for priority in self.priority_steps
            for queue in queues
            if priority <= lowest
        ]
        call = self.intake.next_call(lists, tasks=len(held_requests()))
        self._in_poll, self._brpop_sent_at = self.client.connection, time.monotonic()
        self.client.connection.send_command(*call)

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ANN401  # kombu's signature
        """Read the answer and deliver its message; raises `Empty` without one."""
        connection = self.client.connection
        try:
            answer = self.client.parse_response(connection, self.intake.command, **options)
        except NoScriptError:
            self.intake.lost()
            self.client.script_load(TAKE.source)
            raise Empty from None
        except pools.NoLongerPrimary as error:
            self._refused(error)  # disconnected; the next call asks the sentinels
        except self.connection_errors:
            self.intake.lost()
            connection.disconnect()  # the next call reconnects
            raise
        except ResponseError as error:
            if WRONG_TYPE in str(error) and self.intake.command == "BLPOP":
                self.intake.lost()  # a producer wrote the key; the next call deletes it
                raise Empty from error
            if not is_unavailable(error):
                raise
            self._refused(error)
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if (taken := self.intake.answered(answer)) is None:
            raise Empty
        self.connection.iterate_in(self.intake.pause_s)
        self._pass_on(taken)
        return True

    def _refused(self, error: RedisError) -> NoReturn:
        logger.warning("no message taken: Redis refuses: %s", error)
        self.intake.refused()
        raise Empty from error

    def wake_for_more(self) -> None:
        """Ask again when this worker waits for urgent messages only, and may now take others.

        Where that fails it asks again when its wait ends.
        """
        if self._in_poll and self.intake.waits_below(self.lowest_priority()):
            with suppress(RedisError), self.conn_or_acquire() as client:
                client.lpush(self.intake.wake_key, 1)

    def _pass_on(self, taken: Taken) -> None:
        """Pass a message on to kombu; drop and count an entry that is not a message."""
        try:
            if taken.too_large_bytes:
                size = f"{taken.too_large_bytes} bytes of at most {MAX_MESSAGE_BYTES}"
                raise TypeError(f"it has {size}")  # noqa: TRY301  # one place for all
            message = envelope(json.loads(taken.entry), taken.queue, taken.tag, taken.priority)
        except (ValueError, TypeError, RecursionError) as error:
            self.qos.drop(taken.tag)
            # The error's text: the repr of a decoding error holds the message, prompt and all.
            reason = "too_large" if taken.too_large_bytes else "no_message"
            metrics.reject(reason, f"{taken.queue}: {error!s:.200}")
        else:
            self.connection._deliver(message, taken.queue)  # noqa: SLF001  # as kombu's own channel does


class Transport(transport.Transport):
    """kombu's Redis transport with the channel above."""

    Channel = Channel
    _loop: Any = None

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ANN401  # kombu's signature
        """Make the event loop check for stale connections, too."""
        super().register_with_event_loop(connection, loop)
        self._loop = loop
        if (former := _CHECK_TIMERS.pop(loop, None)) is not None:
            former.cancel()  # of a connection that is gone
        _CHECK_TIMERS[loop] = loop.call_repeatedly(STALE_CHECK_S, self._check)

    def iterate_in(self, seconds: float) -> None:
        """Make the event loop iterate again by then; without one the caller does."""
        if self._loop is not None and seconds > 0:
            self._loop.call_later(seconds, bool)

    def _check(self) -> None:
        for channel in list(self.channels):
            channel.drop_stale_connection()
