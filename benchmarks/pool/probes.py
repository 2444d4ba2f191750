"""Sends messages, cancels and PINGs as clients do, and notes when. In a process of its own."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from dataclasses import dataclass, field

from api_contracts import GenerationClient, TaskStatus
from api_contracts.message import task_message
from api_contracts.names import DEFAULT_MODEL, DEFAULT_PRIORITY, queue_list
from api_contracts.redis_io.connection import connect
from benchmarks.pool.plan import NAMESPACE, QUEUE, REQUEST, TIMED

#: Pause between two PINGs, and between two looks whether a task runs, in seconds.
PING_S, LOOK_S = 0.02, 0.01
#: Pause between two looks at the length of the queue, in seconds.
REFILL_S = 0.2
#: Longest wait for a task to run, in seconds.
START_S = 20.0
#: Mean pause between two messages, in seconds.
PAUSE_S = 0.25
#: Tasks that one call submits.
BATCH = 64


@dataclass
class Sent:
    """When it was sent, by the monotonic clock and task id, and how long PINGs took in seconds."""

    client_s: dict[str, float] = field(default_factory=dict)
    raw_s: dict[str, float] = field(default_factory=dict)
    cancel_s: dict[str, float] = field(default_factory=dict)
    ping_s: list[float] = field(default_factory=list)


class ClientSide:
    """A client of the pool."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = GenerationClient(url, NAMESPACE)

    def backlog(self, waiting: int, until_s: float) -> None:
        """Keep that many tasks waiting until a monotonic time."""
        while True:
            missing = waiting - self._client.queue_depths()[DEFAULT_MODEL]
            for submitted in range(0, missing, BATCH):
                self._client.submit_many([REQUEST] * min(missing - submitted, BATCH))
            if time.monotonic() > until_s:
                return
            time.sleep(REFILL_S)

    def cancel_some(self, until_s: float) -> Sent:
        """PING; submit urgent tasks, one at a time, and cancel each once it runs."""
        sent, pings = Sent(), self._ping(until_s)
        while time.monotonic() < until_s:
            task_id = self._submit(sent, {"priority": 0})
            if self._wait_for_run(task_id):
                time.sleep(random.uniform(0, PAUSE_S))  # noqa: S311  # no secret
                sent.cancel_s[task_id] = time.monotonic()
                self._client.handle(task_id).cancel()
            time.sleep(random.uniform(0, PAUSE_S))  # noqa: S311  # no secret
        return _with_pings(sent, pings)

    def send_some(self, until_s: float) -> Sent:
        """PING; send messages as this project's client does, and as other producers do, in turn."""
        sent, pings = Sent(), self._ping(until_s)
        while time.monotonic() < until_s:
            self._submit(sent, {})
            time.sleep(random.uniform(0, 2 * PAUSE_S))  # noqa: S311  # no secret
            self._push(sent)
            time.sleep(random.uniform(0, 2 * PAUSE_S))  # noqa: S311  # no secret
        return _with_pings(sent, pings)

    def _submit(self, sent: Sent, fields: dict[str, int]) -> str:
        task_id = f"{TIMED}{uuid.uuid4()}"
        sent.client_s[task_id] = time.monotonic()
        self._client.submit(REQUEST | fields, task_id)
        return task_id

    def _push(self, sent: Sent) -> None:
        """Only the message: no record, and no worker is woken."""
        task_id = f"{TIMED}{uuid.uuid4()}"
        message = task_message(task_id, json.dumps(REQUEST), QUEUE, DEFAULT_PRIORITY)
        sent.raw_s[task_id] = time.monotonic()
        self._client.redis.lpush(queue_list(QUEUE, DEFAULT_PRIORITY), message)

    def _wait_for_run(self, task_id: str) -> bool:
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            if self._client.handle(task_id).status() is not TaskStatus.QUEUED:
                return True
            time.sleep(LOOK_S)
        return False

    def _ping(self, until_s: float) -> tuple[threading.Thread, list[float]]:
        took_s: list[float] = []

        def ping() -> None:
            with connect(self._url) as redis:
                while (began_s := time.perf_counter()) and time.monotonic() < until_s:
                    redis.ping()
                    took_s.append(time.perf_counter() - began_s)
                    time.sleep(PING_S)

        thread = threading.Thread(target=ping, name="ping", daemon=True)
        thread.start()
        return thread, took_s


def _with_pings(sent: Sent, pings: tuple[threading.Thread, list[float]]) -> Sent:
    thread, sent.ping_s = pings
    thread.join()
    return sent
