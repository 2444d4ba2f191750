"""The Celery task: from a message to a delivery, from an outcome to what Celery keeps of it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, NoReturn, assert_never

from celery import Task
from celery.exceptions import Ignore, Reject
from redis.exceptions import RedisError

from api_contracts.errors import Fault, GenerationExpired, GenerationFailed
from api_contracts.names import TASK_NAME
from worker.execute import Delivery
from worker.intake import NOT_AFTER, UNREADABLE
from worker.outcome import Cancelled, Dropped, Expired, Failed, Requeued, Succeeded
from worker.pool import PAUSE_S

if TYPE_CHECKING:
    from worker.execute import Executor


logger = logging.getLogger(__name__)


class Generate(Task):
    """`sag.generate`: one keyword argument, `request`."""

    name = TASK_NAME
    #: Answers to the caller, not faults of ours: logged without a traceback.
    throws = (GenerationFailed,)
    #: The broken call is to reach `run`, which answers it.
    typing = False

    def __init__(self, executor: Executor) -> None:
        """`executor` does the work."""
        self.executor = executor

    def run(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401, RET503  # `request`, or what intake put in its place; `_revoked` never returns
        """The result as `GenerationResult`, or Celery's own way to say what else happened."""
        delivery = Delivery(
            self.request.id,
            kwargs.get("request"),
            queue=str(self.request.delivery_info.get("routing_key") or ""),
            expires_at_s=self.request.get(NOT_AFTER),
            fault=_fault(kwargs),
        )
        try:
            outcome = self.executor.execute(delivery)
        except RedisError as away:
            logger.error("task %s goes back, its record is out of reach: %s", self.request.id, away)  # noqa: TRY400  # no fault of ours to trace
            time.sleep(PAUSE_S)
            raise Reject(str(away), requeue=True) from away
        match outcome:
            case Succeeded(result=result):
                return result.model_dump(mode="json")
            case Failed(error=error):
                raise GenerationFailed.of(error)
            case Expired(by_message=True):
                self._revoked("expired")
            case Expired(step=step):
                raise GenerationExpired.at(step)
            case Cancelled(step=step):
                self._revoked(f"cancelled at step {step}")
            case Requeued(reason=reason):
                raise Reject(reason, requeue=True)
            case Dropped(reason=reason):
                raise Ignore(reason)
            case _:
                assert_never(outcome)

    def after_return(
        self,
        status: str,  # noqa: ARG002  # Celery's signature
        retval: Any,  # noqa: ANN401, ARG002  # as above
        task_id: str,
        args: tuple[Any, ...],  # noqa: ARG002  # as above
        kwargs: dict[str, Any],  # noqa: ARG002  # as above
        einfo: Any,  # noqa: ANN401, ARG002  # as above
    ) -> None:
        """Celery's result is written; it is not when the process dies before, or Redis is away."""
        self.executor.told(task_id)

    def _revoked(self, reason: str) -> NoReturn:
        """Celery's state for a cancelled task; `AsyncResult.get()` raises `TaskRevokedError`."""
        self.backend.mark_as_revoked(self.request.id, reason, self.request, store_result=True)
        self.executor.told(self.request.id)
        raise Ignore(reason)


def _fault(kwargs: dict[str, Any]) -> Fault | None:
    """What is wrong with the message, as intake found it."""
    if UNREADABLE not in kwargs:
        return None
    what = str(kwargs[UNREADABLE])[:500]
    return Fault(where="message", what=what, limit="Celery protocol 2, JSON")
