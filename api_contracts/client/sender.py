"""Sends task messages with Celery, for both clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from api_contracts import names
from api_contracts.errors import ServiceUnavailable
from api_contracts.redis_io.connection import as_service_unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api_contracts.request import GenerationRequest


class Sender:
    """A Celery application that only sends. Thread-safe; connects on first use."""

    def __init__(self, broker_url: str) -> None:
        """Raises ValueError for a bad URL."""
        from kombu.pools import producers  # noqa: PLC0415  # a third of this package's import time

        from api_contracts.redis_io import celery_app  # noqa: PLC0415  # as above

        self._celery = celery_app.celery_app("sag-client", broker_url)
        self._connect = lambda: celery_app.connection_for_write(self._celery)
        self._producers = producers
        # CELERY_RESULT_BACKEND would otherwise make this application connect to it.
        self._celery.backend_cls = "disabled"

    def send(self, tasks: Iterable[tuple[str, GenerationRequest]]) -> None:
        """Enqueue tasks, each an id and its request, over one connection.

        Raises `ServiceUnavailable` for the first that could not be sent; those before it were sent.
        """
        task_id = ""
        try:
            with self._producers[self._connect()].acquire(block=True) as producer:
                for task_id, request in tasks:  # the error names the id
                    self._celery.send_task(
                        names.TASK_NAME,
                        kwargs={"request": request.to_wire()},
                        task_id=task_id,
                        queue=names.queue_name(request.model),
                        priority=request.priority,
                        kwargsrepr="<request>",
                        producer=producer,
                        add_to_parent=False,  # not a child of the Celery task that submits it
                        retry_policy={"max_retries": 5, "interval_max": 1.0},
                    )
        except (OperationalError, RedisError) as error:
            if isinstance(error, RedisError) and as_service_unavailable(error) is None:
                raise
            message = f"could not enqueue task {task_id}: {error}"
            raise ServiceUnavailable(message) from error

    def close(self) -> None:
        """Close the connections."""
        self._celery.close()
