"""The callers: threads that submit the orders in turn and follow each task to its end."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from api_contracts import GenerationClient, ServiceUnavailable, TaskNotFound, WaitTimeout
from api_contracts.names import TASK_NAME
from tests.chaos.orders import LIST, PRIORITY, QUEUE, Again, Order, Way, message, request_of
from tests.chaos.orders import litter as litter_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.history import History

#: Clients that the threads share, each with a connection pool of its own.
CLIENTS = 4
#: Longest silence before a follower looks whether the run is over; then it asks on from where it
#: was, as a caller does after `WaitTimeout`.
SILENCE_S = 5.0
#: Pause before a call is made again, in seconds.
PAUSE_S = 0.2
#: What a producer gets while Redis is away: then it sends again, with the same id.
_AWAY = (ServiceUnavailable, OperationalError, RedisError, OSError)


@dataclass
class Load:
    """Callers over the clients' link. `start`, then `join`."""

    url: str
    history: History
    requests: list[dict[str, Any]]
    orders: Iterator[Order]
    #: Tasks that may be open at once.
    backlog: int
    #: Pause between two submissions, so that few tasks last for the whole run; 0 is none.
    pace_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: threading.Event = field(default_factory=threading.Event)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clients = [GenerationClient(self.url) for _ in range(CLIENTS)]
        self._stranger = Celery("stranger", broker=self.url, set_as_current=False)
        self._stranger.conf.broker_transport_options = {
            "socket_timeout": 10, "socket_connect_timeout": 5,
        }  # fmt: skip
        self._redis = Redis.from_url(self.url, socket_timeout=10, socket_connect_timeout=5)
        self._next_s = time.monotonic()

    def start(self) -> None:
        """Begin, with a thread for each task that may be open."""
        for number in range(self.backlog):
            client = self.clients[number % CLIENTS]
            self.spawn(partial(self._serve, client))

    def spawn(self, call: Callable[[], None]) -> None:
        """Have `call` done by a thread that `join` waits for."""
        thread = threading.Thread(target=call, name="caller", daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to submit."""
        return self._closed.is_set()

    def close(self) -> None:
        """Submit nothing new."""
        self._closed.set()

    def join(self, patience_s: float) -> None:
        """Wait for the ends of all tasks; give up when nothing new was seen for so long."""
        self.history.news_s = time.monotonic()
        while any(thread.is_alive() for thread in self._threads):
            if time.monotonic() - self.history.news_s > patience_s:
                break
            time.sleep(PAUSE_S)
        self._stopped.set()
        for thread in self._threads:
            thread.join(6 * SILENCE_S)
        for client in self.clients:
            client.close()
        self._redis.close()
        self._stranger.close()

    def submit_again(self, task_id: str) -> None:
        """Submit a task's id a second time."""
        self._submit(self.history.orders[task_id], self.clients[0])

    def cancel(self, task_id: str) -> None:
        """Ask for a task's end; once, as a caller who loses interest does."""
        self.history.ask_cancel(task_id)
        try:
            self.clients[0].handle(task_id).cancel()
        except ServiceUnavailable:
            pass
        except Exception as error:  # noqa: BLE001  # that is what is looked for
            self.history.note(task_id, f"cancel: {error!r}")

    def _serve(self, client: GenerationClient) -> None:
        while (order := self._take()) is not None:
            self.history.ask(order)
            if order.again is Again.AT_ONCE:
                self.spawn(partial(self._submit, order, self.clients[-1]))
            self._submit(order, client)
            if order.litter is not None:
                self._push(litter_entry(order.litter))
            self._follow(order, client)
            if order.again is Again.LATER:
                self._submit(order, client)

    def _take(self) -> Order | None:
        """The next order when it is due; None at the end."""
        with self._lock:
            while not self._closed.is_set():
                left_s = self._next_s - time.monotonic()
                if left_s <= 0:
                    break
                self._closed.wait(min(left_s, PAUSE_S))
            order = None if self._closed.is_set() else next(self.orders, None)
            if order is None:
                self._closed.set()
            self._next_s += self.pace_s
            return order

    def _submit(self, order: Order, client: GenerationClient) -> None:
        """Send until it is sent: whether an earlier try got through does not matter."""
        request = request_of(order, self.requests)
        while not self._stopped.is_set():
            try:
                if order.way is Way.CLIENT:
                    client.submit(request, order.task_id)
                elif order.way is Way.CELERY:
                    self._stranger.send_task(
                        TASK_NAME, kwargs={"request": request}, task_id=order.task_id,
                        queue=QUEUE, priority=PRIORITY,
                    )  # fmt: skip
                else:
                    self._redis.lpush(LIST, message(order, request))
                return
            except _AWAY as error:
                if order.way is Way.CLIENT and not isinstance(error, ServiceUnavailable):
                    self.history.note(order.task_id, f"submit: {error!r}")
                self._stopped.wait(PAUSE_S)
            except Exception as error:  # noqa: BLE001  # that is what is looked for
                self.history.note(order.task_id, f"submit: {error!r}")
                return

    def _push(self, entry: bytes) -> None:
        try:
            self._redis.lpush(LIST, entry)
        except RedisError:
            return  # litter need not arrive

    def _follow(self, order: Order, client: GenerationClient) -> None:
        """Record every event up to the end, through whatever the client promises to survive."""
        handle, last = client.handle(order.task_id), 0
        while not self._stopped.is_set():
            try:
                for event in handle.events(after=last, timeout=SILENCE_S):
                    last = event.seq
                    self.history.see(event)
                return
            except WaitTimeout:
                pass
            except TaskNotFound as error:
                # Without the client there is no record until a worker takes the message.
                if order.way is Way.CLIENT or last:
                    self.history.note(order.task_id, f"events: {error!r}")
                    return
                self._stopped.wait(PAUSE_S)
            except Exception as error:  # noqa: BLE001  # that is what is looked for
                self.history.note(order.task_id, f"events: {error!r}")
                return
