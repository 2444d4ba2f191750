"""Sends task messages with Celery, for both clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from api_contracts import names
from api_contracts.errors import ServiceUnavailable
from api_contracts.redis_io.connection import CONNECT_S, as_service_unavailable, celery_tls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api_contracts.request import GenerationRequest


class Sender:
    """A Celery application that only sends. Thread-safe; connects on first use."""

    def __init__(self, broker_url: str) -> None:
        """Does not check the URL; an invalid one fails when sending."""
        from celery import Celery  # noqa: PLC0415  # a third of this package's import time
        from kombu.pools import producers  # noqa: PLC0415  # as above

        self._url, self._producers = broker_url, producers
        # Must not affect other Celery applications in this process. No fixups: Django's would make
        # this the default application of all threads. No backend: CELERY_RESULT_BACKEND would
        # otherwise make this application connect to it.
        self._celery = Celery("sag-client", broker=broker_url, set_as_current=False, fixups=[])
        self._celery.backend_cls = "disabled"
        self._celery.conf.update(
            task_serializer="json",
            broker_transport_options=dict(names.TRANSPORT_OPTIONS),
            broker_connection_timeout=CONNECT_S,
            **celery_tls("broker_use_ssl", broker_url),
        )

    def send(self, tasks: Iterable[tuple[str, GenerationRequest]]) -> None:
        """Enqueue tasks, each an id and its request, over one connection.

        Raises `ServiceUnavailable` for the first that could not be sent; those before it were sent.
        """
        task_id = ""
        try:
            # The URL is explicit because Celery prefers the variable CELERY_BROKER_URL.
            connection = self._celery.connection_for_write(self._url)
            with self._producers[connection].acquire(block=True) as producer:
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
