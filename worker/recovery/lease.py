"""Renews the leases of the tasks and messages that this process holds. One daemon thread.

While renewals succeed no other worker can claim this process's tasks; after its death they can be
claimed when their leases have expired. The thread has connections of its own, so that it waits for
nothing else. The answers report cancels. When renewals have failed for a whole lease period, this
process claims nothing more; running tasks continue, since their writes are fenced.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from api_contracts.redis_io.scripts import load
from worker.background import BackgroundThread, log_error
from worker.record.claim import WriteAnswer
from worker.recovery.pool_entry import PoolEntry, leave_pool
from worker.recovery.timing import (
    FORGET_WORKER_S,
    idle_period_s,
    message_lease_s,
    renewal_period_s,
    renewal_retry_s,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from api_contracts.names import Keys
    from worker.broker.held_messages import HeldMessages
    from worker.recovery.active_tasks import ActiveTasks
    from worker.recovery.pool_entry import WorkerState

logger = logging.getLogger(__name__)

#: Longest wait for a cancel before the thread checks whether to stop or to renew, in seconds.
LISTEN_S = 0.25
#: Unanswered pings of the pub/sub connection, one each `LISTEN_S`, after which it counts as lost:
#: a write to a socket whose other end is gone does not fail.
MISSED_PINGS = 20


class Lease:
    """Renews the leases of this process's tasks and messages."""

    def __init__(  # noqa: PLR0913  # its parts
        self,
        redis: Redis,
        keys: Keys,
        tasks: ActiveTasks,
        messages: HeldMessages,
        tags: Callable[[], Sequence[str]],
        lease_s: float,
        *,
        owner: str,
        queues: Sequence[str] = (),
        state: Callable[[], WorkerState | None] = lambda: None,
    ) -> None:
        """`redis` has the records; `tags` returns the delivery tags that Celery holds.

        `owner` names this process in the list of workers; `queues` are those that it serves;
        `state` returns what it tells the pool.
        """
        self.lease_s, self._owner, self._queues = lease_s, owner, queues
        self._redis, self._keys, self._tasks = redis, keys, tasks
        self._messages, self._tags = messages, tags
        self._pool = PoolEntry(keys.pool, owner, state)
        self._heartbeat = load(redis, "worker.record", "heartbeat")
        self._period_s, self._idle_period_s = renewal_period_s(lease_s), idle_period_s(lease_s)
        self._renewed_s = time.monotonic()
        self._has_cleared = False
        self._pubsub: Any = None
        self._thread = BackgroundThread(
            "lease", self._round, self._on_error,
            retry_pause_s=renewal_retry_s(lease_s), on_exit=self._leave,
        )  # fmt: skip

    def start(self) -> None:
        """Start the thread."""
        self._renewed_s = time.monotonic()
        self._thread.start()

    @property
    def silent_s(self) -> float:
        """Seconds since all leases were last renewed."""
        return time.monotonic() - self._renewed_s

    @property
    def is_well(self) -> bool:
        """Whether all leases were renewed within the last lease period."""
        return self.silent_s < self.lease_s

    def close(self) -> None:
        """Stop the thread. Close it last: without renewals other workers may claim the tasks."""
        self._thread.close(self.lease_s)

    def renew(self) -> None:
        """Renew once. Calls both servers, even with nothing to renew; raises redis-py's errors."""
        began_s = time.monotonic()
        # Messages first: one that expired before its task would be dropped as a duplicate.
        self._messages.renew(self._tags(), message_lease_s(self.lease_s))
        claimed = self._tasks.claimed()
        pipeline = self._redis.pipeline(transaction=False)
        for _, claim in claimed:
            key = self._keys.task(claim.task_id)
            self._heartbeat(task=key, token=claim.token, lease_s=self.lease_s, client=pipeline)
        pipeline.zadd(self._keys.workers, {self._owner: time.time()})
        self._pool.queue(pipeline)
        replies = pipeline.execute()
        self._pool.confirm()
        for (task, _), reply in zip(claimed, replies[: len(claimed)], strict=True):
            answer = WriteAnswer(reply)
            if answer.stop is not None:
                task.control.request(answer.stop)
            if answer is WriteAnswer.SUPERSEDED:
                task.claim = None
        self._renewed_s = began_s

    def clear_predecessors(self) -> None:
        """Remove earlier processes with this one's host and name from the list of workers.

        And every process that has renewed nothing for `FORGET_WORKER_S`. One that lives is back
        with its next renewal. Raises redis-py's errors.
        """
        listed: Any = self._redis.zrange(self._keys.workers, 0, -1, withscores=True)
        node = f"{self._owner.rpartition(':')[0]}:".encode()
        forgotten_s = time.time() - FORGET_WORKER_S
        gone = [
            owner
            for owner, renewed_s in listed
            if owner != self._owner.encode() and (owner.startswith(node) or renewed_s < forgotten_s)
        ]
        # The list last: what failed before is done again in the next round.
        for each in gone:
            self._messages.retire(each.decode(errors="replace"), self._queues)
        if gone:
            leave_pool(self._redis, self._keys, gone)

    def _round(self) -> None:
        self._tasks.new_claim.clear()
        self.renew()
        if not self._has_cleared:
            self.clear_predecessors()
            self._has_cleared = True
        self._wait()

    def _on_error(self, error: Exception) -> None:
        log_error(logger, f"leases not renewed for {self.silent_s:.1f} s", error)
        self._unsubscribe()

    def _wait(self) -> None:
        """Wait for the next period, a new claim, or the cancel of a task that is claimed here."""
        if self._pubsub is None:
            self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
            self._pubsub.subscribe(self._keys.control)
        is_idle = not self._tasks.ids and not self._tags()
        until_s = time.monotonic() + (self._idle_period_s if is_idle else self._period_s)
        while not self._thread.is_stopping and not self._tasks.new_claim.is_set():
            if (left_s := until_s - time.monotonic()) <= 0:
                return
            message = self._pubsub.get_message(timeout=min(left_s, LISTEN_S))
            if message and self._tasks.is_claimed(message["data"].decode(errors="replace")):
                return
            if self._pubsub.health_check_response_counter >= MISSED_PINGS:
                logger.warning("the pub/sub connection is lost; subscribing again")
                self._unsubscribe()
                return

    def _leave(self) -> None:
        """Leave the list of workers; one that is left in it counts as not answering."""
        self._unsubscribe()
        try:
            leave_pool(self._redis, self._keys, [self._owner])
            self._messages.retire(self._owner, self._queues)
        except RedisError as error:
            log_error(logger, "not removed from the list of workers", error)

    def _unsubscribe(self) -> None:
        if self._pubsub is not None:
            try:
                self._pubsub.close()
            except RedisError:
                logger.debug("the pub/sub connection was closed already")
            self._pubsub = None
