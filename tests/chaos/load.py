"""The callers: threads that submit tasks in turn and follow each to its end."""

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
from tests.chaos import commands
from tests.chaos.submissions import (
    LIST,
    PRIORITY,
    QUEUE,
    Expected,
    Resubmit,
    Sender,
    Submission,
    message,
    request_of,
)
from tests.chaos.submissions import garbage as garbage_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.recorded_events import RecordedEvents

#: Clients that the threads share, each with a connection pool of its own.
CLIENTS = 4
#: Longest wait for an event before a follower checks whether the run is over; then it follows on
#: from the last event, as a caller does after `WaitTimeout`. In seconds.
SILENCE_S = 5.0
#: Pause before a call is made again, in seconds.
RETRY_PAUSE_S = 0.2
#: Errors of a producer while Redis is away: it sends again, with the same id.
_AWAY = (ServiceUnavailable, OperationalError, RedisError, OSError)


@dataclass
class Load:
    """Callers over the clients' proxy link. `start`, then `join`."""

    #: Of plain producers, and of `GenerationClient`.
    url: str
    service_url: str
    events: RecordedEvents
    requests: list[dict[str, Any]]
    submissions: Iterator[Submission]
    #: Tasks that may be open at once.
    backlog: int
    #: Pause between two submissions, so that few tasks fill the whole run; 0 is none.
    pace_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: threading.Event = field(default_factory=threading.Event)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clients = [GenerationClient(self.service_url) for _ in range(CLIENTS)]
        self._celery = Celery("caller", broker=self.url, set_as_current=False)
        self._celery.conf.broker_transport_options = {
            "socket_timeout": 10, "socket_connect_timeout": 5,
        }  # fmt: skip
        self._redis = Redis.from_url(self.url, socket_timeout=10, socket_connect_timeout=5)
        self._next_s = time.monotonic()

    def start(self) -> None:
        """Start a thread for each task that may be open."""
        for number in range(self.backlog):
            client = self.clients[number % CLIENTS]
            self.spawn(partial(self._serve, client))

    def spawn(self, call: Callable[[], None]) -> None:
        """Call `call` on a thread that `join` waits for."""
        thread = threading.Thread(target=call, name="caller", daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to submit."""
        return self._closed.is_set()

    def close(self) -> None:
        """Submit no further tasks."""
        self._closed.set()

    def join(self, patience_s: float) -> None:
        """Wait until all tasks ended; give up when no event was seen for `patience_s`."""
        self.events.last_entry_s = time.monotonic()
        while any(thread.is_alive() for thread in self._threads):
            if time.monotonic() - self.events.last_entry_s > patience_s:
                break
            time.sleep(RETRY_PAUSE_S)
        self._stopped.set()
        for thread in self._threads:
            thread.join(6 * SILENCE_S)
        for client in self.clients:
            client.close()
        self._redis.close()
        self._celery.close()

    def submit_remote(self, task_id: str) -> None:
        """Submit a task whose model can't be downloaded, and follow it."""
        submission = Submission(task_id, 0, expects=Expected.NOT_LOADED)
        self.events.add_submission(submission)
        self._submit(submission, self.clients[0])
        self._follow(submission, self.clients[0])

    def send_commands(self) -> None:
        """Send the commands that a worker of Celery would hold messages by, without a retry."""
        try:
            commands.send(self._celery)
        except _AWAY:
            return

    def submit_again(self, task_id: str) -> None:
        """Submit a task's id a second time."""
        self._submit(self.events.submissions[task_id], self.clients[0])

    def cancel(self, task_id: str) -> None:
        """Cancel a task, without a retry."""
        self.events.add_cancel(task_id)
        try:
            self.clients[0].handle(task_id).cancel()
        except ServiceUnavailable:
            pass
        except Exception as error:  # noqa: BLE001  # an undocumented error is a finding
            self.events.add_client_error(task_id, f"cancel: {error!r}")

    def _serve(self, client: GenerationClient) -> None:
        while (submission := self._take()) is not None:
            self.events.add_submission(submission)
            if submission.resubmit is Resubmit.AT_ONCE:
                self.spawn(partial(self._submit, submission, self.clients[-1]))
            self._submit(submission, client)
            if submission.garbage is not None:
                self._push(garbage_entry(submission.garbage))
            self._follow(submission, client)
            if submission.resubmit is Resubmit.LATER:
                self._submit(submission, client)

    def _take(self) -> Submission | None:
        """The next submission when it is due; None at the end."""
        with self._lock:
            while not self._closed.is_set():
                left_s = self._next_s - time.monotonic()
                if left_s <= 0:
                    break
                self._closed.wait(min(left_s, RETRY_PAUSE_S))
            submission = None if self._closed.is_set() else next(self.submissions, None)
            if submission is None:
                self._closed.set()
            self._next_s += self.pace_s
            return submission

    def _submit(self, submission: Submission, client: GenerationClient) -> None:
        """Send until a try succeeds; an earlier one may have got through, too."""
        request = request_of(submission, self.requests)
        while not self._stopped.is_set():
            try:
                if submission.sender is Sender.CLIENT:
                    client.submit(request, submission.task_id)
                elif submission.sender is Sender.CELERY:
                    self._celery.send_task(
                        TASK_NAME, kwargs={"request": request}, task_id=submission.task_id,
                        queue=QUEUE, priority=PRIORITY,
                    )  # fmt: skip
                else:
                    self._redis.lpush(LIST, message(submission, request))
                return
            except _AWAY as error:
                if submission.sender is Sender.CLIENT and not isinstance(error, ServiceUnavailable):
                    self.events.add_client_error(submission.task_id, f"submit: {error!r}")
                self._stopped.wait(RETRY_PAUSE_S)
            except Exception as error:  # noqa: BLE001  # an undocumented error is a finding
                if submission.sender is Sender.CLIENT:
                    self.events.add_client_error(submission.task_id, f"submit: {error!r}")
                    return
                # Celery's producer, while its Redis starts again: kombu's own AttributeError.
                self._stopped.wait(RETRY_PAUSE_S)

    def _push(self, entry: bytes) -> None:
        try:
            self._redis.lpush(LIST, entry)
        except RedisError:
            return  # garbage need not arrive

    def _follow(self, submission: Submission, client: GenerationClient) -> None:
        """Record every event up to the end, through every outage that the client documents."""
        handle, last = client.handle(submission.task_id), 0
        while not self._stopped.is_set():
            try:
                for event in handle.events(after=last, timeout=SILENCE_S):
                    last = event.seq
                    self.events.add_client_event(event)
                return
            except WaitTimeout:
                pass
            except TaskNotFound as error:
                # Without the client there is no record until a worker takes the message.
                if submission.sender is Sender.CLIENT or last:
                    self.events.add_client_error(submission.task_id, f"events: {error!r}")
                    return
                self._stopped.wait(RETRY_PAUSE_S)
            except Exception as error:  # noqa: BLE001  # an undocumented error is a finding
                self.events.add_client_error(submission.task_id, f"events: {error!r}")
                return
