"""The thread that keeps what this process holds: its tasks' leases and its messages'.

While it gets through, nobody else is given our tasks; when this process dies, somebody is, a lease
later. It has connections of its own, so that nothing else can hold it up, and it is where a cancel
is heard. When it can't get through for as long as a lease lasts, this process claims nothing more;
what it runs goes on, as its end is fenced.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from api_contracts.redis_io.connection import is_away
from api_contracts.redis_io.scripts import load
from worker.record.task_record import WriteAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from api_contracts.names import Keys
    from worker.broker.held_messages import HeldMessages
    from worker.job_control import Control
    from worker.record.task_record import Claim

logger = logging.getLogger(__name__)

#: Renewals in the time that a lease lasts.
RENEWALS = 4
#: Longest time between two renewals, in seconds: so late is a cancel heard whose nudge was lost.
MOST_S = 2.0
#: How soon the thread sees that it is to end, in seconds.
LOOK_S = 0.25


class Lease:
    """One daemon thread for all tasks and messages of this process."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        messages: HeldMessages,
        tags: Callable[[], Sequence[str]],
        lease_s: float,
    ) -> None:
        """`redis` has the records; `tags` gives the messages that Celery holds."""
        self.lease_s = lease_s
        self._redis, self._keys, self._messages, self._tags = redis, keys, messages, tags
        self._heartbeat = load(redis, "worker.record", "heartbeat")
        self._held: dict[str, tuple[Claim, Control]] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        #: A task was claimed: its message's lease is to outlast its own from now on.
        self._news = threading.Event()
        self._renewed_s = time.monotonic()
        self._pubsub: Any = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to renew; a second time does nothing."""
        with self._lock:
            if self._thread is None:
                self._renewed_s = time.monotonic()
                thread = threading.Thread(target=self._serve, name="lease", daemon=True)
                thread.start()
                self._thread = thread

    def hold(self, claim: Claim, control: Control) -> None:
        """Keep a claimed task from now until `let_go`; `control` is asked to stop it."""
        with self._lock:
            self._held[claim.task_id] = claim, control
        self._news.set()

    def let_go(self, claim: Claim) -> None:
        """The task has ended, or is another's; a later claim of it stays."""
        with self._lock:
            if self._held.get(claim.task_id, (None,))[0] == claim:
                del self._held[claim.task_id]

    def held(self) -> list[tuple[Claim, Control]]:
        """The tasks that are kept."""
        with self._lock:
            return list(self._held.values())

    @property
    def silent_s(self) -> float:
        """Seconds since the last renewal of everything."""
        return time.monotonic() - self._renewed_s

    @property
    def is_well(self) -> bool:
        """Whether what this process holds is known to be its own."""
        return self.silent_s < self.lease_s

    def close(self) -> None:
        """End the thread; the last thing to do, since it keeps the tasks ours."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=self.lease_s)

    def renew(self) -> None:
        """One round, which asks both servers, holding nothing too; raises what redis-py raises."""
        began_s = time.monotonic()
        # First the messages: one that came back before its task's lease has run out would be
        # taken for a duplicate.
        self._messages.renew(self._tags(), self.lease_s)
        held = self.held()
        pipeline = self._redis.pipeline(transaction=False)
        for claim, _ in held:
            task = self._keys.task(claim.task_id)
            self._heartbeat(task=task, fence=claim.fence, lease_s=self.lease_s, client=pipeline)
        pipeline.ping()
        for (claim, control), reply in zip(held, pipeline.execute()[:-1], strict=True):
            answer = WriteAnswer(reply)
            if answer.stop is not None:
                control.request(answer.stop)
            if answer is WriteAnswer.SUPERSEDED:
                self.let_go(claim)
        self._renewed_s = began_s

    def _serve(self) -> None:
        period_s = min(self.lease_s / RENEWALS, MOST_S)
        while not self._closed.is_set():
            try:
                self.renew()
                self._listen(period_s)
            except Exception as error:  # without this thread every task is lost to its owner
                away = is_away(error)
                logger.warning(
                    "leases not renewed for %.1f s: %s",
                    self.silent_s, error, exc_info=None if away else error,
                )  # fmt: skip
                self._deafen()
                self._closed.wait(min(period_s, 1.0) / 4)
        self._deafen()

    def _listen(self, period_s: float) -> None:
        """Wait for the next renewal, or for the cancel of a task that is held here."""
        if self._pubsub is None:
            self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
            self._pubsub.subscribe(self._keys.control)
        until_s = time.monotonic() + period_s
        while (left_s := until_s - time.monotonic()) > 0 and not self._closed.is_set():
            message = self._pubsub.get_message(timeout=min(left_s, LOOK_S))
            with self._lock:
                if message and message["data"].decode(errors="replace") in self._held:
                    return
            if self._news.is_set():
                self._news.clear()
                return

    def _deafen(self) -> None:
        if self._pubsub is not None:
            try:
                self._pubsub.close()
            except RedisError:
                logger.debug("the connection for cancels was gone already")
            self._pubsub = None
