"""The way in for other backends: submit tasks, and get hold of those that were submitted."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Self

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from api_contracts import names
from api_contracts.connection import CONNECT_S, celery_tls, connect, unavailable
from api_contracts.errors import Fault, InvalidRequest, ServiceUnavailable
from api_contracts.handle import TaskHandle
from api_contracts.parse import parse_request
from api_contracts.records import Records, reach
from api_contracts.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api_contracts.events import TaskStatus


class GenerationClient:
    """Submits to the workers that share a broker and a namespace. Thread-safe."""

    def __init__(
        self,
        broker_url: str,
        namespace: str = names.DEFAULT_NAMESPACE,
        *,
        events_url: str | None = None,
    ) -> None:
        """Connect to nothing yet; `events_url` is the broker's unless the workers differ."""
        self._records = Records(events_url or broker_url, namespace)
        self.keys, self.redis = self._records.keys, self._records.redis
        self._broker = connect(broker_url)
        from celery import Celery  # noqa: PLC0415  # a third of this package's import time

        self._celery = Celery("sag-client", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            task_serializer="json",
            broker_transport_options=dict(names.TRANSPORT_OPTIONS),
            broker_connection_timeout=CONNECT_S,
            **celery_tls("broker_use_ssl", broker_url),
        )

    def submit(
        self, request: GenerationRequest | dict[str, Any], task_id: str | None = None
    ) -> TaskHandle:
        """Submit a request; the same `task_id` again is the same task.

        Raises `InvalidRequest` with every fault, `ServiceUnavailable` when Redis is away: then
        submit again with the same `task_id`, which can never make a second task.
        """
        data = request.to_wire() if isinstance(request, GenerationRequest) else request
        checked = parse_request(data)
        task_id = _checked_id(str(uuid.uuid4()) if task_id is None else task_id)
        if (waiting := self._records.submit(task_id, checked)) is not None:
            self._send(task_id, waiting)
        return TaskHandle(self._records, task_id)

    def handle(self, task_id: str) -> TaskHandle:
        """The handle of a task that was submitted before, here or elsewhere."""
        return TaskHandle(self._records, _checked_id(task_id))

    def status_many(self, task_ids: Iterable[str]) -> dict[str, TaskStatus | None]:
        """The status of each task, None for one without a record; one round trip."""
        wanted = [_checked_id(task_id) for task_id in task_ids]
        return dict(zip(wanted, self._records.statuses(wanted), strict=True))

    def queue_depths(self, models: Iterable[str] = (names.DEFAULT_MODEL,)) -> dict[str, int]:
        """Messages that wait, by model; those that a worker holds are not among them."""
        wanted = list(models)
        pipeline = self._broker.pipeline(transaction=False)
        for model in wanted:
            for key in names.queue_lists(model):
                pipeline.llen(key)
        lengths = reach(pipeline.execute)
        each = len(names.PRIORITIES)
        return {
            model: sum(lengths[number * each : (number + 1) * each])
            for number, model in enumerate(wanted)
        }

    def close(self) -> None:
        """Give the connections back."""
        self.redis.close()
        self._broker.close()
        self._celery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, task_id: str, request: GenerationRequest) -> None:
        try:
            self._celery.send_task(
                names.TASK_NAME,
                kwargs={"request": request.to_wire()},
                task_id=task_id,
                queue=names.queue_name(request.model),
                priority=request.priority,
                kwargsrepr="<request>",
                retry_policy={"max_retries": 5, "interval_max": 1.0},
            )
        except (OperationalError, RedisError) as error:
            if isinstance(error, RedisError) and unavailable(error) is None:
                raise
            message = f"could not enqueue task {task_id}: {error}"
            raise ServiceUnavailable(message) from error


def _checked_id(task_id: str) -> str:
    if not names.is_task_id(task_id):
        fault = Fault(
            where="task_id", what="is not a task id", limit="1 to 128 of A-Z a-z 0-9 . _ -"
        )
        raise InvalidRequest([fault])
    return task_id
