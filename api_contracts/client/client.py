"""The way in for other backends: submit tasks, and get hold of those that were submitted."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Self

from api_contracts import names
from api_contracts.client.handle import TaskHandle
from api_contracts.client.queues import depths, lists_of, positions
from api_contracts.client.records import Records, reach
from api_contracts.client.sender import Sender
from api_contracts.errors import FieldError, InvalidRequest, ServiceUnavailable
from api_contracts.parse import parse_request
from api_contracts.redis_io.connection import COUNT_S, connect_impatiently
from api_contracts.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from api_contracts.events import TaskStatus

#: A request as it may be given.
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
        """Connect to nothing yet; `events_url` is the broker's unless the workers differ."""
        self._records = Records(events_url or broker_url, namespace)
        self.keys, self.redis = self._records.keys, self._records.redis
        self._broker = connect_impatiently(broker_url, COUNT_S)
        self._sender = Sender(broker_url)

    def submit(self, request: Request, task_id: str | None = None) -> TaskHandle:
        """Submit a request; the same `task_id` again is the same task.

        Raises `InvalidRequest` with every fault, `ServiceUnavailable` when Redis is away: then
        submit again with the same `task_id`, which can never make a second task.
        """
        (checked,) = check_all([request])
        (checked_id,) = check_ids([task_id])
        return self._submit([checked], [checked_id])[0]

    def submit_many(
        self, requests: Sequence[Request], task_ids: Sequence[str] | None = None
    ) -> list[TaskHandle]:
        """Submit requests, one task each, in their order; `task_ids` are as many.

        All are checked first: `InvalidRequest` says of each fault in which request it is, and
        nothing was sent. On `ServiceUnavailable` some may have been: submit all again, with the
        same ids.
        """
        checked = check_all(requests, numbered=len(requests) > 1)
        ids = check_ids([None] * len(checked) if task_ids is None else task_ids, len(checked))
        return self._submit(checked, ids)

    def _submit(
        self, requests: Sequence[GenerationRequest], task_ids: Sequence[str]
    ) -> list[TaskHandle]:
        places = positions(requests, self._lengths_if_known(requests))
        waiting = self._records.submit(list(zip(task_ids, requests, places, strict=True)))
        if waiting:
            self._sender.send(waiting)
        return [TaskHandle(self._records, task_id) for task_id in task_ids]

    def handle(self, task_id: str) -> TaskHandle:
        """The handle of a task that was submitted before, here or elsewhere."""
        (checked_id,) = check_ids([task_id])
        return TaskHandle(self._records, checked_id)

    def status_many(self, task_ids: Iterable[str]) -> dict[str, TaskStatus | None]:
        """The status of each task, None for one without a record; one round trip."""
        wanted = check_ids(list(task_ids))
        return dict(zip(wanted, self._records.statuses(wanted), strict=True))

    def queue_depths(self, models: Iterable[str] = (names.DEFAULT_MODEL,)) -> dict[str, int]:
        """Messages that wait, by model; those that a worker holds are not among them."""
        wanted = list(models)
        return depths(wanted, self._lengths(lists_of(wanted)))

    def _lengths(self, lists: Sequence[str], *, or_errors: bool = False) -> dict[str, Any]:
        pipeline = self._broker.pipeline(transaction=False)
        for key in lists:
            pipeline.llen(key)
        return dict(zip(lists, reach(lambda: pipeline.execute(not or_errors)), strict=True))

    def _lengths_if_known(self, requests: Sequence[GenerationRequest]) -> dict[str, Any]:
        try:
            return self._lengths(lists_of(request.model for request in requests), or_errors=True)
        except ServiceUnavailable:  # which sending will say, once there is a record
            return {}

    def close(self) -> None:
        """Give the connections back."""
        self.redis.close()
        self._broker.close()
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_all(requests: Sequence[Request], *, numbered: bool = False) -> list[GenerationRequest]:
    """The requests as they would be read by a worker.

    Raises `InvalidRequest` with the faults of all, each with its request's number if `numbered`.
    """
    checked, faults = [], []
    for number, request in enumerate(requests):
        data = request.to_wire() if isinstance(request, GenerationRequest) else request
        try:
            checked.append(parse_request(data))
        except InvalidRequest as error:
            place = f"[{number}]." if numbered else ""
            faults += [
                fault.model_copy(update={"where": f"{place}{fault.where}"})
                for fault in error.faults
            ]
    if faults:
        raise InvalidRequest(faults)
    return checked


def check_ids(task_ids: Sequence[str | None], count: int | None = None) -> list[str]:
    """Ids that may be used, made up where there is None; raises `InvalidRequest` for others.

    `count` is how many, different from each other, there must be.
    """
    found = [str(uuid.uuid4()) if each is None else each for each in task_ids]
    if count is not None and (len(found), len(set(found))) != (count, count):
        what = f"has {len(found)} ids, {len(set(found))} of them different"
        raise InvalidRequest(
            [FieldError(where="task_ids", what=what, limit=f"{count} different ids")]
        )
    if all(names.is_task_id(each) for each in found):
        return found
    fault = FieldError(
        where="task_id", what="is not a task id", limit="1 to 128 of A-Z a-z 0-9 . _ -"
    )
    raise InvalidRequest([fault])
