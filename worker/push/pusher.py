"""The threads that push ends: to a queue or a webhook, again and again until it has them."""

from __future__ import annotations

import logging
import random
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import ValidationError
from redis.exceptions import RedisError

from api_contracts.pushes import MAX_TRIES, Push, PushKind, PushState, message_id
from api_contracts.redis_io.connection import is_away
from api_contracts.request import ReplyTo
from worker import metrics
from worker.errors import PushError
from worker.record.push_queue import HOLD_S
from worker.redis_retry import retry_redis

if TYPE_CHECKING:
    from worker.push.celery_replies import CeleryReplies
    from worker.push.webhooks import Webhooks
    from worker.record.push_queue import Due, PushQueue

logger = logging.getLogger(__name__)

#: Pushes that are tried at once: a webhook that does not answer has a thread for seconds.
THREADS = 8
#: Of these for one host or queue: a receiver that is away is not to hold up the others.
MOST_OF_ONE = 2
#: Pushes that are looked at together.
TAKEN = 16
#: Pause between two looks for what is due, in seconds; for so long waits what can't begin yet.
LOOK_S = 0.5
#: A receiver that has not answered for so long is slow: what else is for it waits for longer, up
#: to half less by chance, and meanwhile the others are looked at.
SLOW_S, SLOW_PAUSE_S = 2.0, 30.0
#: Pauses between two tries of one push, in seconds: twice as long each time, and up to half less.
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 300.0
#: How long a process that ends waits for what it is trying, in seconds.
CLOSE_S = 5.0


class Pusher:
    """A daemon thread that looks what is due, and one for each push that is being tried."""

    def __init__(
        self, pushes: PushQueue, replies: CeleryReplies, webhooks: Webhooks, retry_s: float
    ) -> None:
        """A push is given up `retry_s` after its first try."""
        self._pushes, self._replies, self._webhooks = pushes, replies, webhooks
        self._retry_s = retry_s
        self._wake = threading.Condition()
        #: What is being tried, where to, and since when.
        self._trying: dict[tuple[str, PushKind], tuple[str, float]] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; a second time does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="pusher", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Begin nothing more; what is not delivered soon is left to other processes."""
        until_s = time.monotonic() + CLOSE_S
        with self._wake:
            self._closed = True
            self._wake.notify_all()
            self._wake.wait_for(lambda: not self._trying, until_s - time.monotonic())
        self._replies.close()

    def _serve(self) -> None:
        while not self._closed:
            try:
                self._begin()
            except Exception as error:  # the pushes of all tasks wait for this thread
                away = is_away(error)
                logger.warning("nothing pushed: %s", error, exc_info=None if away else error)
            with self._wake:
                self._wake.wait_for(lambda: self._closed, LOOK_S)

    def _begin(self) -> None:
        """Begin what is due, but not too much at once, nor for one receiver; the rest waits."""
        taken = TAKEN
        while taken == TAKEN and len(self._trying) < THREADS and not self._closed:
            found = self._pushes.take(TAKEN)
            taken = len(found)
            for due in found:
                if (pause_s := self._must_wait_s(due)) is None:
                    self._start(due)
                else:
                    self._pushes.settle(due, due.push, pause_s)

    def _must_wait_s(self, due: Due) -> float | None:
        """How long a push waits; None when it may begin."""
        with self._wake:
            same = [since_s for where, since_s in self._trying.values() if where == _where(due)]
            known = (due.task_id, due.kind) in self._trying
            if not known and len(self._trying) < THREADS and len(same) < MOST_OF_ONE:
                return None
        is_slow = same and time.monotonic() - min(same) > SLOW_S
        return SLOW_PAUSE_S * random.uniform(0.5, 1) if is_slow else LOOK_S  # noqa: S311  # as below

    def _start(self, due: Due) -> None:
        what = due.task_id, due.kind
        with self._wake:
            self._trying[what] = _where(due), time.monotonic()
        name = f"push-{due.kind}"
        try:
            threading.Thread(target=self._try, args=(due,), name=name, daemon=True).start()
        except RuntimeError:  # no more threads are to be had
            self._done(due)
            raise

    def _done(self, due: Due) -> None:
        with self._wake:
            del self._trying[due.task_id, due.kind]
            self._wake.notify_all()

    def _try(self, due: Due) -> None:
        try:
            push, again_s = self._after(due, self._tried(due))
            retry_redis(lambda: self._pushes.settle(due, push, again_s), HOLD_S / 4)
            metrics.PUSHES.labels(due.kind.value, str(push.state)).inc()
        except RedisError as error:
            logger.warning("task %s: how its push went is not noted: %s", due.task_id, error)
        finally:
            self._done(due)

    def _tried(self, due: Due) -> PushError | None:
        """Try once; gives why it failed."""
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
            return PushError("the request's own is refused", final=True)
        except Exception as error:
            logger.exception("task %s: its push failed for a reason that is ours", due.task_id)
            return PushError(f"internal: {type(error).__name__}")
        return None

    def _after(self, due: Due, why: PushError | None) -> tuple[Push, float | None]:
        """How a push stands after a try, and after which pause it is tried again, if at all."""
        now, tries = datetime.now(UTC), min(due.push.tries + 1, MAX_TRIES)
        first_at, who = min(due.push.first_at or now, now), f"task {due.task_id}: {due.kind.value}"
        push = Push(state=PushState.DELIVERED, tries=tries, first_at=first_at, last_at=now)
        if why is None:
            logger.info("%s delivered, try %d", who, tries)
            return push, None
        again_s = min(FIRST_PAUSE_S * 2 ** min(tries - 1, 30), MOST_PAUSE_S)
        again_s *= random.uniform(0.5, 1)  # noqa: S311  # so that not all come at once
        given_up = why.final or (now - first_at).total_seconds() + again_s > self._retry_s
        state = PushState.GIVEN_UP if given_up else PushState.WAITING
        logger.warning("%s %s, try %d: %s", who, state.value, tries, why)
        push = push.model_copy(update={"state": state, "error": str(why)})
        return push, None if given_up else again_s


def _where(due: Due) -> str:
    """The host or queue that a push goes to."""
    match due.target:
        case str() as url:
            try:
                return urlsplit(url).netloc
            except ValueError:
                return url  # which is refused when it is tried
        case {"queue": queue}:
            return f"queue {queue}"
        case _:
            return ""
