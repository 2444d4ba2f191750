"""The client for other backends: submits tasks, and finds tasks that were submitted before."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Self

from redis.exceptions import RedisError

from api_contracts import names
from api_contracts.client import queues
from api_contracts.client.handle import TaskHandle
from api_contracts.client.records import Records, Submission, service_errors
from api_contracts.client.sender import send
from api_contracts.client.tracing import submit_span
from api_contracts.errors import FieldError, InvalidRequest
from api_contracts.parse import parse_request
from api_contracts.redis_io.connection import COUNT_S, connect, connect_impatiently
from api_contracts.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from api_contracts.events import TaskStatus

#: A request as callers may pass it.
Request = GenerationRequest | dict[str, Any]


class GenerationClient:
    """Submits to the workers that share a broker and a namespace. Thread-safe."""

    def __init__(
        self,
        broker_url: str,
        namespace: str = names.DEFAULT_NAMESPACE,
        *,
        events_url: str | None = None,
    ) -> None:
        """Connects on first use. `events_url` is the workers' `SAG_EVENTS_URL`, if they set it."""
        self._records = Records(events_url or broker_url, namespace)
        self.keys, self.redis = self._records.keys, self._records.redis
        self._broker = connect(broker_url)
        self._counter = connect_impatiently(broker_url, COUNT_S)

    def submit(self, request: Request, task_id: str | None = None) -> TaskHandle:
        """Submit a request; submitting a `task_id` again makes no second task.

        Raises `InvalidRequest` with every error, `ServiceUnavailable` when Redis is unavailable:
        then submit again with the same `task_id`.
        """
        return self.submit_many([request], None if task_id is None else [task_id])[0]

    def submit_many(
        self, requests: Sequence[Request], task_ids: Sequence[str] | None = None
    ) -> list[TaskHandle]:
        """Submit requests in order, one task each; `task_ids` has one id for each.

        All are checked before any is sent: `InvalidRequest` names the request of each error. After
        `ServiceUnavailable` some may have been sent: submit all again, with the same ids.
        """
        checked, ids = check_submissions(requests, task_ids)
        with submit_span(checked, ids) as traced:
            positions = queues.positions(traced, self._lengths_if_known(traced))
            tasks = map(Submission.of, ids, traced, positions)
            waiting = self._records.submit(list(tasks))
            with service_errors():
                send(self._broker, waiting)
        return [TaskHandle(self._records, each) for each in ids]

    def handle(self, task_id: str) -> TaskHandle:
        """The handle of a task, without I/O; raises `InvalidRequest` for an invalid id."""
        return TaskHandle(self._records, *check_ids([task_id]))

    def status_many(self, task_ids: Iterable[str]) -> dict[str, TaskStatus | None]:
        """The status of each task, None for one without a record; one round trip."""
        ids = check_ids(list(task_ids))
        return dict(zip(ids, self._records.statuses(ids), strict=True))

    def queue_depths(self, models: Iterable[str] = (names.DEFAULT_MODEL,)) -> dict[str, int]:
        """Number of waiting messages by model, without those that a worker holds."""
        wanted = list(models)
        with service_errors():
            lengths = queues.length_pipeline(self._counter, wanted).execute()
        return queues.depths(wanted, lengths)

    def _lengths_if_known(self, requests: Sequence[GenerationRequest]) -> list[object]:
        pipeline = queues.length_pipeline(self._counter, (each.model for each in requests))
        try:
            lengths: list[object] = pipeline.execute(raise_on_error=False)
        except RedisError:  # sending fails, too, and reports it once there is a record
            return []
        return lengths

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()
        self._broker.close()
        self._counter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_submissions(
    requests: Sequence[Request], task_ids: Sequence[str] | None
) -> tuple[list[GenerationRequest], list[str]]:
    """Validate requests as a worker does; return them with an id for each, generated if not given.

    Raises `InvalidRequest` with the errors of all requests, each with its request's number where
    there are several; or when there are not as many different valid ids as requests.
    """
    checked, errors = [], []
    for number, request in enumerate(requests):
        data = request.to_wire() if isinstance(request, GenerationRequest) else request
        try:
            checked.append(parse_request(data))
        except InvalidRequest as refused:
            place = f"[{number}]." if len(requests) > 1 else ""
            errors += [
                each.model_copy(update={"where": f"{place}{each.where}"}) for each in refused.faults
            ]
    if errors:
        raise InvalidRequest(errors)
    count = len(checked)
    ids = [str(uuid.uuid4()) for _ in checked] if task_ids is None else check_ids(task_ids)
    if (len(ids), len(set(ids))) != (count, count):
        what = f"has {len(ids)} ids, {len(set(ids))} of them different"
        raise InvalidRequest(
            [FieldError(where="task_ids", what=what, limit=f"{count} different ids")]
        )
    return checked, ids


def check_ids(task_ids: Sequence[str]) -> list[str]:
    """Return the ids as a list; raises `InvalidRequest` unless all are valid."""
    if all(map(names.is_task_id, task_ids)):
        return list(task_ids)
    limit = "1 to 128 of A-Z a-z 0-9 . _ -, at least one letter or digit"
    raise InvalidRequest([FieldError(where="task_id", what="is not a task id", limit=limit)])
