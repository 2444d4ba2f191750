"""Tasks of the project's own Celery worker."""

from typing import Any

from celery import Task, shared_task

from api_contracts import ServiceUnavailable, WaitTimeout

from .sag import client

#: Longest wait for a picture, in seconds, during which this task holds its place in the worker.
WAIT_S = 600


@shared_task(
    bind=True, acks_late=True, autoretry_for=(ServiceUnavailable, WaitTimeout), retry_backoff=True
)
def illustrate(self: Task, order: dict[str, Any]) -> str:
    """Have a picture made, and give its key in S3. Tried or delivered again, it is the same."""
    task = client().submit(order, task_id=f"article-{self.request.id}")
    return task.result(timeout=WAIT_S).images[0].key
