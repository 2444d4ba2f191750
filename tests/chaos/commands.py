"""Celery's remote-control commands that hold messages, or steer them, sent to all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api_contracts.names import TASK_NAME
from tests.chaos.submissions import QUEUE

if TYPE_CHECKING:
    from celery import Celery


def send(app: Celery) -> None:
    """Send each of them once; none may have an effect. Raises what kombu raises."""
    control = app.control
    control.rate_limit(TASK_NAME, "1/h")
    control.time_limit(TASK_NAME, soft=1, hard=1)
    control.cancel_consumer(QUEUE)
    control.add_consumer("another")
    control.pool_shrink(4)
    control.pool_restart()
    control.autoscale(1, 0)
