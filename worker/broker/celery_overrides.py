"""The parts of Celery's worker that this project replaces: consumer, thread pool, result backend.

Overrides of Celery's private functions stand here and in `remote_control`, those of kombu's in
`transport`. `tests/record/upstream.py` lists each one, as a checklist for upgrades of Celery.
"""

from __future__ import annotations

import logging
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.redis import RedisBackend
from celery.concurrency import thread
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer

from api_contracts.redis_io import pools
from api_contracts.redis_io.connection import is_unavailable
from api_contracts.redis_io.scripts import load
from worker import metrics
from worker.broker.held_messages import REQUEUE_PAUSE_S
from worker.broker.validate_message import normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from celery.worker.request import Request
    from kombu import Message
    from redis import ConnectionPool

logger = logging.getLogger(__name__)


class TolerantConsumer(Consumer):
    """Celery's consumer, which gets normalized messages only, so that none can stop the worker.

    Celery assumes well-formed messages: one whose body can't be decoded keeps its slot forever.
    """

    def on_decode_error(self, message: Message, exc: Exception) -> None:  # noqa: ARG002  # Celery's signature
        """Handle a message whose body kombu can't decode; Celery would drop it."""
        self.task_consumer.on_message(message)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:  # noqa: ANN401  # Celery's signature
        """Celery's handler, called with normalized messages only."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Message) -> None:
            try:
                reason = normalize(message)
            except Exception as error:  # noqa: BLE001  # no message may end the worker
                reason = f"it can't be validated: {type(error).__name__}"
            if reason is not None:
                metrics.reject("no_task", reason)
                message.reject_log_error(logger, self.connection_errors)
                return
            try:
                handle(message)
            except self.connection_errors:
                raise
            except Exception:  # no message may end the worker
                logger.exception(
                    "task %s: message dropped, Celery failed to handle it",
                    message.headers.get("id"),
                )
                message.reject_log_error(logger, self.connection_errors)

        return on_message


class TaskPool(thread.TaskPool):
    """Celery's thread pool, which requeues a message when Celery failed to complete its task.

    Celery itself ignores that error, and the message keeps its slot.
    """

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        *rest: Any,  # noqa: ANN401  # Celery's signature
        **options: Any,  # noqa: ANN401  # Celery's signature
    ) -> thread.ApplyResult:
        """Run a task; `callback` is its request's `on_success`."""
        result = super().on_apply(target, args, kwargs, callback, *rest, **options)
        request: Request | None = getattr(callback, "__self__", None)
        result.f.add_done_callback(lambda future: _requeue_failed(request, future))
        return result


def _requeue_failed(request: Request | None, future: Future[Any]) -> None:
    """Requeue the message. If the record has an outcome, the next delivery only reports it."""
    if request is None or future.cancelled() or (error := future.exception()) is None:
        return
    logger.error("task %s: message requeued, Celery failed to complete it: %r", request.id, error)
    time.sleep(REQUEUE_PAUSE_S)
    try:
        request.reject(requeue=True)
    finally:
        worker_state.task_ready(request)


class Backend(RedisBackend):
    """Celery's result backend, in which a late progress state never overwrites a final one.

    `address` of the backend's transport options says where Redis is.
    """

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002  # Celery's signature
        address = self._transport_options["address"]
        # With TLS the defaults have a class for a single server.
        own = {"connection_class": pools.connection_class(address)}
        return pools.fitting(address, defaults | own)

    def _get_pool(self, **params: Any) -> ConnectionPool:  # noqa: ANN401  # Celery's signature
        return pools.pool_of(self._transport_options["address"], params)

    def store_running(self, running: Mapping[str, tuple[Any, str]]) -> None:
        """Write results and states of running tasks in one call, by task id.

        Each is written as `store_result` would. Logs a state that can't be written; raises when
        Redis is unavailable.
        """
        metas = {}
        for task_id, (result, state) in running.items():
            meta = self._get_result_meta(result, state, traceback=None, request=None)
            metas[self.get_key_for_task(task_id)] = self.encode(meta | {"task_id": task_id})
        for task_id, answer in zip(running, self._set_unless_final(metas), strict=True):
            if isinstance(answer, Exception):
                logger.warning("task %s: Celery's state not written: %s", task_id, answer)

    def _set_with_state(self, key: str, value: Any, state: str) -> Any:  # noqa: ANN401  # Celery's signature
        if state in states.READY_STATES:
            return super()._set_with_state(key, value, state)
        (answer,) = self._set_unless_final({key: value})
        if isinstance(answer, Exception):
            raise answer
        return answer

    @cached_property
    def _set_state(self) -> Callable[..., Any]:
        return load(self.client, "worker.broker", "set_state")

    def _set_unless_final(self, metas: Mapping[Any, Any]) -> Sequence[int | Exception]:
        """Write encoded metas by key; gives 1, 0 where a final state stands, or the error.

        Raises the error where Redis is unavailable.
        """
        given = {"results": metas.keys(), "metas": metas.values(), "expires_s": self.expires or 0}
        answers: Sequence[int | Exception] = self.ensure(lambda: self._set_state(**given), ())
        for answer in answers:
            if isinstance(answer, Exception) and is_unavailable(answer):
                raise answer
        return answers
