"""Celery's thread pool; a task whose end Celery could not write down goes back to its queue."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery.concurrency import thread
from celery.worker import state

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from celery.worker.request import Request

logger = logging.getLogger(__name__)

#: Pause before a message goes back, in seconds.
PAUSE_S = 1.0


class TaskPool(thread.TaskPool):
    """Threads. Celery itself would forget the error, and the message's slot would stay taken."""

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
        request: Request = getattr(callback, "__self__", None)
        result.f.add_done_callback(lambda future: _settle(request, future))
        return result


def _settle(request: Request | None, future: Future[Any]) -> None:
    """The record may say that the task has ended: then its next delivery only answers again."""
    if request is None or future.cancelled() or (error := future.exception()) is None:
        return
    logger.error("task %s goes back, Celery could not write its end: %r", request.id, error)
    time.sleep(PAUSE_S)
    try:
        request.reject(requeue=True)
    finally:
        state.task_ready(request)
