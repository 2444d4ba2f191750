"""The Celery task: from a message to a delivery, from an outcome to what Celery keeps of it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, assert_never

from celery import Task, states
from celery.exceptions import Ignore, Reject, TaskRevokedError
from redis.exceptions import RedisError, ResponseError

from api_contracts.errors import FieldError, GenerationExpired, GenerationFailed
from api_contracts.names import TASK_NAME
from api_contracts.redis_io.connection import unavailable
from worker import metrics
from worker.broker.held_messages import REQUEUE_PAUSE_S
from worker.broker.validate_message import NOT_AFTER, UNREADABLE, WANTS_RESULT
from worker.execution.delivery import Delivery
from worker.execution.outcome import (
    Cancelled,
    Dropped,
    Expired,
    Failed,
    Outcome,
    Requeued,
    Succeeded,
)
from worker.redis_retry import retry_redis

if TYPE_CHECKING:
    from worker.execution.executor import Executor


logger = logging.getLogger(__name__)

#: How long an end is tried to be told, and how long after a failure each is tried but once, in
#: seconds. A try takes some 2 s of a Redis that does not answer.
TELL_S, REST_S = 5.0, 60.0
#: How it shows that a record is not as we write them.
_ODD = (
    ResponseError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip


class Generate(Task):
    """`sag.generate`: one keyword argument, `request`.

    What Celery keeps of the end is written here, inside the task's body. Celery itself would write
    it later; and where it can't, it would write a failure instead once it can.
    """

    name = TASK_NAME
    #: Written here; see above.
    ignore_result = True
    #: Answers to the caller, not faults of ours: logged without a traceback.
    throws = (GenerationFailed,)
    #: The broken call is to reach `run`, which answers it.
    typing = False

    def __init__(self, executor: Executor) -> None:
        """`executor` does the work."""
        self.executor = executor
        self._failed_s = float("-inf")

    def run(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401  # `request`, or what intake put in its place
        """The result as `GenerationResult`, or Celery's own way to say what else happened.

        Whatever goes wrong around the task, a message of it comes again, as long as its record
        says that something is left to do.
        """
        delivery = Delivery(
            self.request.id,
            kwargs.get("request"),
            queue=str(self.request.delivery_info.get("routing_key") or ""),
            expires_at_s=self.request.get(NOT_AFTER),
            fault=_fault(kwargs),
        )
        try:
            outcome = self.executor.execute(delivery)
        except Exception as error:
            raise self._later(delivery.task_id, error) from error
        try:
            self._tell(outcome)
        except Exception as error:
            # It stays open, and its message will come again a lease later. Given back now, it
            # would be taken before those of a lower priority, again and again.
            logger.error("task %s: Celery not told (%s): %r", delivery.task_id, outcome, error)  # noqa: TRY400  # its Redis
            raise Ignore(str(error)) from error
        return _answer(outcome)

    def _later(self, task_id: str, error: Exception) -> Reject | Ignore:
        """What becomes of a message that was not done for a reason around the task.

        Back it goes, unless its record can't be read: it would come back for ever, before all of a
        lower priority. While such a task is open, the reconciler sends it again a lease later, and
        else nothing can be done for it.
        """
        refused = isinstance(error, RedisError) and unavailable(error) is not None
        try:
            is_odd = isinstance(error, _ODD) and not refused
            goes_back = not (is_odd and self.executor.is_known(task_id))
        except RedisError:
            goes_back = True
        logger.error(
            "task %s %s: %r", task_id, "goes back" if goes_back else "is left alone", error,
            exc_info=None if refused else error,
        )  # fmt: skip
        if not goes_back:
            metrics.REJECTED.labels("odd_record").inc()
            return Ignore(str(error))
        time.sleep(REQUEUE_PAUSE_S)
        return Reject(str(error), requeue=True)

    def _tell(self, outcome: Outcome) -> None:
        """Write Celery's state of an end. `AsyncResult.get()` gives or raises accordingly."""
        kept: Any
        match outcome:
            case Requeued() | Dropped():
                return
            case Succeeded(result=result):
                state, kept = states.SUCCESS, result.model_dump(mode="json")
            case Cancelled() | Expired(by_message=True):
                state, kept = states.REVOKED, TaskRevokedError(str(outcome))
            case Failed() | Expired():
                state, kept = states.FAILURE, _error(outcome)
            case _:
                assert_never(outcome)
        if self.request.get(WANTS_RESULT, True):
            self._store(kept, state)
        self.executor.close(self.request.id)

    def _store(self, kept: Any, state: str) -> None:  # noqa: ANN401  # as Celery keeps it
        """Try for a while; only once, where it failed a moment ago: others need the slots."""
        request = self.request
        patience_s = TELL_S if time.monotonic() - self._failed_s > REST_S else 0.0
        try:
            retry_redis(
                lambda: self.backend.store_result(request.id, kept, state, request=request),
                patience_s,
            )
        except Exception:
            self._failed_s = time.monotonic()
            raise


def _answer(outcome: Outcome) -> dict[str, Any]:
    """What Celery logs, and does with the message."""
    match outcome:
        case Succeeded(result=result):
            return result.model_dump(mode="json")
        case Failed() | Expired(by_message=False):
            raise _error(outcome)
        case Requeued(reason=reason):
            raise Reject(reason, requeue=True)
        case Cancelled() | Expired() | Dropped():
            raise Ignore(str(outcome))
        case _:
            assert_never(outcome)


def _error(outcome: Failed | Expired) -> GenerationFailed:
    if isinstance(outcome, Failed):
        return GenerationFailed.of(outcome.error)
    return GenerationExpired.at(outcome.step)


def _fault(kwargs: dict[str, Any]) -> FieldError | None:
    """What is wrong with the message, as intake found it."""
    if UNREADABLE not in kwargs:
        return None
    what = str(kwargs[UNREADABLE])[:500]
    return FieldError(where="message", what=what, limit="Celery protocol 2, JSON")
