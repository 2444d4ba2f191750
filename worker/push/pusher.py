"""The threads that push terminal events to queues and webhooks, and retry until delivered."""

from __future__ import annotations

import heapq
import logging
import random
import re
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError
from redis.exceptions import RedisError

from api_contracts.pushes import MAX_TRIES, Push, PushKind, PushState, message_id
from api_contracts.request_types import ReplyTo
from worker import metrics
from worker.background import BackgroundThread, log_error
from worker.errors import PushError
from worker.record.push_queue import HOLD_S
from worker.redis_retry import retry_redis
from worker.tracing.traces import Traces

if TYPE_CHECKING:
    from worker.push.celery_replies import CeleryReplies
    from worker.push.webhooks import Webhooks
    from worker.record.push_queue import Due, PushQueue

logger = logging.getLogger(__name__)

#: Most tries at once. A webhook that does not answer occupies a thread for seconds.
MAX_THREADS = 8
#: Most tries at once for one host or queue, so that an unavailable one does not block the others.
MAX_PER_RECEIVER = 2
#: Pushes taken from the queue at once.
BATCH_SIZE = 16
#: Pause between two polls of the queue while this process knows of a push that is due, and of a
#: push that can't start yet, in seconds.
POLL_INTERVAL_S = 0.5
#: Pause between two polls for pushes that other processes left, in seconds.
IDLE_POLL_S = 20.0
#: A receiver that takes longer than the first to answer is slow: other pushes to it pause for the
#: second, less up to half of it at random. In seconds.
SLOW_S, SLOW_PAUSE_S = 2.0, 30.0
#: First and longest pause between tries of one push, in seconds: doubles each time, less up to half
#: of it at random.
FIRST_RETRY_S, MAX_RETRY_S = 1.0, 300.0
#: Of a host or queue in a span: a target that is not validated may have any length.
MAX_HOST_CHARS = 255
#: How long `close` waits for running tries, in seconds.
CLOSE_TIMEOUT_S = 5.0


class Pusher:
    """A daemon thread that polls for due pushes, and one thread for each try."""

    def __init__(
        self,
        pushes: PushQueue,
        replies: CeleryReplies,
        webhooks: Webhooks,
        retry_s: float,
        traces: Traces | None = None,
    ) -> None:
        """A push is given up `retry_s` seconds after its first try."""
        self._traces = traces or Traces()
        self._pushes, self._replies, self._webhooks = pushes, replies, webhooks
        self._give_up_after_s = retry_s
        self._wake = threading.Condition()
        #: Running tries: receiver and start (monotonic seconds).
        self._running: dict[tuple[str, PushKind], tuple[str, float]] = {}
        #: When this process polls for pushes that it knows of, a heap, and for those of others; in
        #: monotonic seconds.
        self._polls_s: list[float] = []
        self._idle_poll_s = float("-inf")
        self._thread = BackgroundThread(
            "pusher", self._round, self._on_error, pause_s=POLL_INTERVAL_S
        )

    def start(self) -> None:
        """Start the thread, unless it was started before."""
        self._thread.start()

    def close(self) -> None:
        """Start no more tries and wait for the running ones; other processes take over the rest."""
        until_s = time.monotonic() + CLOSE_TIMEOUT_S
        self._thread.stop()
        with self._wake:
            self._wake.wait_for(lambda: not self._running, until_s - time.monotonic())
        self._replies.close()

    def _on_error(self, error: Exception) -> None:
        self._poll_in(0)
        log_error(logger, "pushes not started, retrying", error)

    def _round(self) -> None:
        if self._pushes.added.is_set() or self._is_poll_due():
            self._pushes.added.clear()
            self._start_due()

    def _is_poll_due(self) -> bool:
        now_s = time.monotonic()
        with self._wake:
            is_due = now_s >= self._idle_poll_s
            while self._polls_s and self._polls_s[0] <= now_s:
                heapq.heappop(self._polls_s)
                is_due = True
        if is_due:
            self._idle_poll_s = now_s + IDLE_POLL_S
        return is_due

    def _poll_in(self, seconds: float) -> None:
        """Poll then: a push that this process tried is due."""
        with self._wake:
            heapq.heappush(self._polls_s, time.monotonic() + seconds)

    def _start_due(self) -> None:
        """Start due pushes within the limits; postpone the others."""
        taken = BATCH_SIZE
        while taken == BATCH_SIZE and len(self._running) < MAX_THREADS:
            if self._thread.is_stopping:
                return
            found = self._pushes.take(BATCH_SIZE)
            taken = len(found)
            for due in found:
                if (pause_s := self._postponed_s(due)) is None:
                    self._start(due)
                else:
                    self._pushes.settle(due, due.push, pause_s)
                    self._poll_in(pause_s)

    def _postponed_s(self, due: Due) -> float | None:
        """How long a push is postponed; None when it may start."""
        to = _receiver(due)
        with self._wake:
            same = [since_s for receiver, since_s in self._running.values() if receiver == to]
            known = (due.task_id, due.kind) in self._running
            if not known and len(self._running) < MAX_THREADS and len(same) < MAX_PER_RECEIVER:
                return None
        is_slow = same and time.monotonic() - min(same) > SLOW_S
        return _jittered(SLOW_PAUSE_S) if is_slow else POLL_INTERVAL_S

    def _start(self, due: Due) -> None:
        with self._wake:
            self._running[due.task_id, due.kind] = _receiver(due), time.monotonic()
        name = f"push-{due.kind}"
        try:
            threading.Thread(target=self._try, args=(due,), name=name, daemon=True).start()
        except RuntimeError:  # the system has no more threads; the push is due again after HOLD_S
            self._done(due)
            raise

    def _done(self, due: Due) -> None:
        with self._wake:
            del self._running[due.task_id, due.kind]
            self._wake.notify_all()
        self._poll_in(0)  # another one may have waited for the thread

    def _try(self, due: Due) -> None:
        began_s = time.perf_counter()
        try:
            error = self._tried(due)
            times_s = began_s, time.perf_counter()
            self._settle(due, error)
            self._traces.push(due, _host(due), times_s, error)
        finally:
            self._done(due)

    def _settle(self, due: Due, error: PushError | None) -> None:
        """Store the outcome of a try. Nothing that may fail stands between the two."""
        push, retry_s = self._after(due, error)
        try:
            retry_redis(lambda: self._pushes.settle(due, push, retry_s), HOLD_S / 4)
        except RedisError as why:
            logger.warning("task %s: push state not written: %s", due.task_id, why)
            return
        if retry_s is not None:
            self._poll_in(retry_s)
        metrics.PUSHES.labels(due.kind.value, str(push.state)).inc()

    def _tried(self, due: Due) -> PushError | None:
        """Try once; returns the error, if any."""
        name = message_id(due.task_id, due.seq)
        try:
            match due.kind:
                case PushKind.REPLY_TO:
                    self._replies.send(ReplyTo.model_validate(due.target), name, due.event)
                case PushKind.WEBHOOK:
                    self._webhooks.post(str(due.target), name, due.event)
        except PushError as why:
            return why
        except ValidationError:
            return PushError("the request's `reply_to` is not valid", final=True)
        except Exception as error:
            logger.exception("task %s: push failed with an internal error", due.task_id)
            return PushError(f"internal: {type(error).__name__}")
        return None

    def _after(self, due: Due, error: PushError | None) -> tuple[Push, float | None]:
        """The state after a try, and the pause before the next one in seconds, None for none."""
        now, tries = datetime.now(UTC), min(due.push.tries + 1, MAX_TRIES)
        first_at, name = min(due.push.first_at or now, now), f"task {due.task_id}: {due.kind.value}"
        push = Push(state=PushState.DELIVERED, tries=tries, first_at=first_at, last_at=now)
        if error is None:
            logger.info("%s delivered, try %d", name, tries)
            return push, None
        retry_s = _jittered(min(FIRST_RETRY_S * 2 ** min(tries - 1, 30), MAX_RETRY_S))
        given_up = error.final or (now - first_at).total_seconds() + retry_s > self._give_up_after_s
        state = PushState.GIVEN_UP if given_up else PushState.WAITING
        logger.warning("%s %s, try %d: %s", name, state.value, tries, error)
        push = push.model_copy(update={"state": state, "error": str(error)})
        return push, None if given_up else retry_s


def _jittered(pause_s: float) -> float:
    """A pause shortened at random, so that not all retries come at once."""
    return pause_s * random.uniform(0.5, 1)  # noqa: S311  # no secret


def _host(due: Due) -> str:
    """The queue, or the host and port, that a push goes to."""
    return re.split("[ /@]", _receiver(due))[-1][:MAX_HOST_CHARS]


def _receiver(due: Due) -> str:
    """The queue, or the scheme and host, that a push goes to. `due.target` is not validated yet."""
    match due.target:
        case {"queue": queue}:
            return f"queue {queue}"
        case target:
            return "/".join(re.split("[/?]", str(target))[:3])
