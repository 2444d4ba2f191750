"""The Celery task `sag.generate`: message to delivery, outcome to Celery's result."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, assert_never

from celery import Task, states
from celery.exceptions import Ignore, Reject, TaskRevokedError
from redis.exceptions import RedisError, ResponseError

from api_contracts.errors import FieldError, GenerationExpired, GenerationFailed
from api_contracts.names import DEFAULT_PRIORITY, TASK_NAME
from api_contracts.redis_io.connection import as_service_unavailable
from worker import metrics
from worker.broker.held_messages import REQUEUE_PAUSE_S
from worker.broker.validate_message import (
    NOT_AFTER,
    TRACEPARENT,
    UNREADABLE,
    WANTS_RESULT,
)
from worker.execution.delivery import Delivery
from worker.execution.outcome import (
    Outcome,
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    TaskSucceeded,
)
from worker.redis_retry import retry_redis

if TYPE_CHECKING:
    from worker.execution.executor import Executor


logger = logging.getLogger(__name__)

#: How long writing a Celery result is retried, in seconds. One try at a Redis that does not answer
#: takes about 2 s.
STORE_TIMEOUT_S = 5.0
#: How long after a failure each result is tried only once, in seconds.
STORE_COOLDOWN_S = 60.0
#: What Redis's scripts and our parsers raise for a record that another program wrote.
_UNREADABLE_RECORD = (
    ResponseError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip


class Generate(Task):
    """`sag.generate`: one keyword argument, `request`.

    Celery's result is written here, inside the task's body. Celery itself would write it later;
    and where that fails, it would write a failure instead once its Redis is back.
    """

    name = TASK_NAME
    #: Celery writes no result; see above.
    ignore_result = True
    #: Answers to the caller, not bugs: logged without a traceback.
    throws = (GenerationFailed,)
    #: A call with wrong arguments reaches `run`, which answers it.
    typing = False

    def __init__(self, executor: Executor) -> None:
        """`executor` runs the deliveries."""
        self.executor = executor
        self._store_failed_s = float("-inf")

    def run(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401  # `request`, or what validate_message put there
        """Return a `GenerationResult` as a dict, or raise Celery's exception for another outcome.

        An unexpected error never ends the task: while its record is open, its message is delivered
        again.
        """
        delivery = Delivery(
            self.request.id,
            kwargs.get("request"),
            queue=str(self.request.delivery_info.get("routing_key") or ""),
            priority=self.request.delivery_info.get("priority", DEFAULT_PRIORITY),
            expires_at_s=self.request.get(NOT_AFTER),
            fault=_message_fault(kwargs),
            header_traceparent=self.request.get(TRACEPARENT),
        )
        try:
            outcome = self.executor.execute(delivery)
        except Exception as error:
            raise self._requeue_or_ignore(delivery.task_id, error) from error
        try:
            self._store_outcome(outcome)
        except Exception as error:
            # The task stays open, and the reconciler resends it one lease period later. Requeued
            # now, it would be taken before those of a lower priority, endlessly.
            logger.error(  # noqa: TRY400  # its Redis, not a bug
                "task %s: Celery's result not written (%s): %r", delivery.task_id, outcome, error
            )
            raise Ignore(str(error)) from error
        return _answer(outcome)

    def _requeue_or_ignore(self, task_id: str, error: Exception) -> Reject | Ignore:
        """The exception to raise after `execute` failed: `Reject`, which requeues the message.

        `Ignore` if the record is unreadable: requeued, the message would return endlessly, before
        lower priorities. The reconciler quarantines the record or, if the task is open, resends it
        one lease period later.
        """
        refused = isinstance(error, RedisError) and as_service_unavailable(error) is not None
        try:
            is_unreadable = isinstance(error, _UNREADABLE_RECORD) and not refused
            requeues = not (is_unreadable and self.executor.is_known(task_id))
        except RedisError:
            requeues = True
        logger.error(
            "task %s: message %s: %r", task_id,
            "requeued" if requeues else "dropped, unreadable record",
            error, exc_info=None if refused else error,
        )  # fmt: skip
        if not requeues:
            metrics.REJECTED.labels("odd_record").inc()
            return Ignore(str(error))
        time.sleep(REQUEUE_PAUSE_S)
        return Reject(str(error), requeue=True)

    def _store_outcome(self, outcome: Outcome) -> None:
        """Write Celery's final state, from which `AsyncResult.get()` returns or raises."""
        result: Any
        match outcome:
            case TaskRequeued() | TaskDropped():
                return
            case TaskSucceeded():
                state, result = states.SUCCESS, outcome.result.model_dump(mode="json")
            case TaskCancelled() | TaskExpired(by_message=True):
                state, result = states.REVOKED, TaskRevokedError(str(outcome))
            case TaskFailed() | TaskExpired():
                state, result = states.FAILURE, _exception(outcome)
            case _:
                assert_never(outcome)
        if self.request.get(WANTS_RESULT, True):
            self._store(result, state)
        self.executor.close(self.request.id)

    def _store(self, result: Any, state: str) -> None:  # noqa: ANN401  # what Celery serializes
        """Write with retries; try once after a recent failure, since other tasks need the slot."""
        request = self.request
        failed_recently = time.monotonic() - self._store_failed_s <= STORE_COOLDOWN_S
        try:
            retry_redis(
                lambda: self.backend.store_result(request.id, result, state, request=request),
                0.0 if failed_recently else STORE_TIMEOUT_S,
            )
        except Exception:
            self._store_failed_s = time.monotonic()
            raise


def _answer(outcome: Outcome) -> dict[str, Any]:
    """Return or raise what makes Celery log the outcome and acknowledge or reject the message."""
    match outcome:
        case TaskSucceeded(result=result):
            return result.model_dump(mode="json")
        case TaskFailed() | TaskExpired(by_message=False):
            raise _exception(outcome)
        case TaskRequeued(reason=reason):
            raise Reject(reason, requeue=True)
        case TaskCancelled() | TaskExpired() | TaskDropped():
            raise Ignore(str(outcome))
        case _:
            assert_never(outcome)


def _exception(outcome: TaskFailed | TaskExpired) -> GenerationFailed:
    if isinstance(outcome, TaskFailed):
        return GenerationFailed.of(outcome.error)
    return GenerationExpired.at(outcome.step)


def _message_fault(kwargs: dict[str, Any]) -> FieldError | None:
    """What `validate_message` found wrong with the message; None for a valid one."""
    if UNREADABLE not in kwargs:
        return None
    what = str(kwargs[UNREADABLE])[:500]
    return FieldError(where="message", what=what, limit="Celery protocol 2, JSON")
