"""The caller's half of a task's record in Redis: submit, cancel, and read what workers wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from redis.exceptions import RedisError

from api_contracts.connection import connect, unavailable
from api_contracts.events import EVENT, Event, TaskStatus
from api_contracts.names import Keys, queue_name
from api_contracts.request import GenerationRequest
from api_contracts.scripts import event_tail, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Records:
    """Reads and writes records. Thread-safe; connects on first use.

    Every method but `read` and `is_told` raises `ServiceUnavailable` when Redis does not answer;
    those two let redis-py's own errors through, for whoever wants to wait and ask again.
    """

    def __init__(self, url: str, namespace: str) -> None:
        """Raises ValueError for what is no URL."""
        self.redis = connect(url)
        self.keys = Keys(namespace)
        self._submit = load(self.redis, "api_contracts", "submit")
        self._cancel = load(self.redis, "api_contracts", "cancel")

    def submit(self, task_id: str, request: GenerationRequest) -> GenerationRequest | None:
        """Write a record unless there is one; gives the request to send while the task waits.

        That is the one that came first under this id; None when the task waits no longer.
        """
        queue = queue_name(request.model)
        fields: dict[str, Any] = {"queue": queue, "position": None, "metadata": request.metadata}
        wire = request.model_dump_json(exclude_unset=True)
        deadline_s = "" if request.deadline_s is None else repr(request.deadline_s)
        args = [task_id, wire, event_tail(task_id, "queued", fields), queue, deadline_s]
        status, first = reach(lambda: self._submit(keys=self._three(task_id), args=args))
        if status.decode() != TaskStatus.QUEUED:
            return None
        return GenerationRequest.model_validate_json(first)

    def cancel(self, task_id: str) -> TaskStatus | None:
        """Ask for a task to end; gives the status that it had, None without a record."""
        fields = {"step": 0, "metadata": self._metadata(task_id)}
        tail = event_tail(task_id, "cancelled", fields)
        args = [task_id, tail, self.keys.control]
        keys = [*self._three(task_id), self.keys.wishes]
        status = reach(lambda: self._cancel(keys=keys, args=args)).decode()
        return None if status == "unknown" else TaskStatus(status)

    def statuses(self, task_ids: Sequence[str]) -> list[TaskStatus | None]:
        """The status of each task, None for one without a record; one round trip."""
        pipeline = self.redis.pipeline(transaction=False)
        for task_id in task_ids:
            pipeline.hget(self.keys.task(task_id), "status")
        found = reach(pipeline.execute)
        return [TaskStatus(status.decode()) if status else None for status in found]

    def read(self, task_id: str, after: int, block_s: float) -> list[tuple[int, Event | None]]:
        """Events after number `after`, with their numbers; waits up to `block_s` for the first.

        None stands for an event of a kind that this version does not know.
        """
        stream, block_ms = self.keys.events(task_id), max(1, int(block_s * 1000))
        reply = self.redis.xread({stream: f"{after}-0"}, count=200, block=block_ms)
        streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply)
        return [
            (int(number.split(b"-")[0]), _event(fields))
            for _, entries in streams
            for number, fields in entries
        ]

    def is_told(self, task_id: str, last: int) -> bool | None:
        """Whether the task has ended and event `last` was its end; None without a record."""
        reply = self.redis.hmget(self.keys.task(task_id), "status", "seq")
        status, seq = cast("list[bytes | None]", reply)
        if status is None:
            return None
        return TaskStatus(status.decode()).is_terminal and int(seq or 0) <= last

    def _three(self, task_id: str) -> list[str]:
        return [self.keys.task(task_id), self.keys.events(task_id), self.keys.open]

    def _metadata(self, task_id: str) -> dict[str, str]:
        return metadata_of(reach(lambda: self.redis.hget(self.keys.task(task_id), "request")))


def metadata_of(request: bytes | None) -> dict[str, str]:
    """The metadata in a record's request; none where nobody can read it."""
    if not request:
        return {}
    try:
        return GenerationRequest.model_validate_json(request).metadata
    except ValidationError:
        return {}


def reach(call: Callable[[], Any]) -> Any:  # noqa: ANN401  # redis-py's own replies
    """What `call` gives; raises `ServiceUnavailable` when Redis is away or refuses."""
    try:
        return call()
    except RedisError as error:
        if (told := unavailable(error)) is None:
            raise
        raise told from error


def _event(fields: dict[bytes, bytes]) -> Event | None:
    try:
        return EVENT.validate_json(fields.get(b"event", b""))
    except ValidationError:
        return None
