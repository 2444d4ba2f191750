"""The caller's access to task records in Redis: submit, cancel, read status and events.

The functions build calls and read replies without I/O, for `Records` here and for `aio_records`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import ValidationError
from redis.exceptions import NoScriptError, RedisError

from api_contracts.client.sender import Waiting
from api_contracts.events import EVENT, Event, TaskStatus
from api_contracts.names import Keys, queue_name
from api_contracts.pushes import FIELDS, Push, PushKind, pushes_of
from api_contracts.redis_io.connection import as_service_unavailable, connect
from api_contracts.redis_io.scripts import event_tail, load, read
from api_contracts.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Most events per read.
READ_LIMIT = 200
SUBMIT = read("api_contracts.redis_io", "submit")

#: An event's number, and the event; None for a type that this version does not know.
NumberedEvent = tuple[int, "Event | None"]


class Submission(NamedTuple):
    """A task to submit."""

    task: Waiting
    request: GenerationRequest
    #: In its queue, where known.
    position: int | None

    @classmethod
    def of(cls, task_id: str, request: GenerationRequest, position: int | None) -> Self:
        """The submission of a valid request."""
        text = request.model_dump_json(exclude_unset=True)
        queue = queue_name(request.model)
        return cls(Waiting(task_id, text, queue, request.priority), request, position)


class Records:
    """Reads and writes records. Thread-safe; connects on first use.

    Methods raise `ServiceUnavailable` when Redis does not answer; `read` and `has_ended` raise
    redis-py's errors instead, because their caller retries.
    """

    def __init__(self, url: str, namespace: str) -> None:
        """Raises ValueError for an invalid URL."""
        self.redis = connect(url)
        self.keys = Keys(namespace)
        #: redis-py does not wait longer for a call that blocks.
        self._longest_block_s = self.redis.connection_pool.connection_kwargs["socket_timeout"] / 2
        self._cancel = load(self.redis, "api_contracts.redis_io", "cancel")

    def submit(self, tasks: Sequence[Submission]) -> list[Waiting]:
        """Write records for new ids in one round trip; returns the tasks whose messages to send.

        Those are the queued ones, each with the request that was first submitted under its id.
        """
        with service_errors():
            return to_send(tasks, self._write(tasks))

    def _write(self, tasks: Sequence[Submission]) -> Any:  # noqa: ANN401  # redis-py's replies
        try:
            return submit_pipeline(self.redis, self.keys, tasks).execute()
        except NoScriptError:
            self.redis.script_load(SUBMIT.source)
            return self._write(tasks)

    def cancel(self, task_id: str) -> TaskStatus | None:
        """Request cancellation; returns the status before it, None without a record."""
        with service_errors():
            request: Any = self.redis.hget(self.keys.task(task_id), "request")
            return status_of(self._cancel(**cancel_call(self.keys, task_id, request)))

    def statuses(self, task_ids: Sequence[str]) -> list[TaskStatus | None]:
        """The status of each task, None for one without a record; one round trip."""
        with service_errors():
            return list(map(status_of, status_pipeline(self.redis, self.keys, task_ids).execute()))

    def pushes(self, task_id: str) -> dict[PushKind, Push]:
        """State of an ended task's pushes, by the request's field."""
        with service_errors():
            reply: Any = self.redis.hmget(self.keys.task(task_id), FIELDS)
        return pushes_of(reply)

    def read(self, task_id: str, after: int, block_s: float) -> list[NumberedEvent]:
        """Events after number `after`; waits up to `block_s` for the first.

        And for no longer than half of the connection's timeout.
        """
        block_ms = max(1, int(min(block_s, self._longest_block_s) * 1000))
        stream = self.keys.events(task_id)
        return numbered(self.redis.xread({stream: f"{after}-0"}, READ_LIMIT, block=block_ms))

    def has_ended(self, task_id: str, last: int) -> bool | None:
        """Whether event `last` was the task's terminal one; None without a record."""
        return was_terminal(self.redis.hmget(self.keys.task(task_id), END_FIELDS), last)


@contextmanager
def service_errors() -> Iterator[None]:
    """Raise `ServiceUnavailable` where Redis is unavailable or refuses this user."""
    try:
        yield
    except RedisError as error:
        if (translated := as_service_unavailable(error)) is None:
            raise
        raise translated from error


def submit_pipeline(redis: Any, keys: Keys, tasks: Sequence[Submission]) -> Any:  # noqa: ANN401  # sync or async
    """A pipeline that calls `submit.lua` for each task."""
    pipeline = redis.pipeline(transaction=False)
    for task in tasks:
        pipeline.evalsha(*submit_call(keys, task))
    return pipeline


def submit_call(keys: Keys, submission: Submission) -> list[Any]:
    """The arguments of EVALSHA for `submit.lua`."""
    (task_id, text, queue, _), request, position = submission
    fields: dict[str, Any] = {"queue": queue, "position": position, "metadata": request.metadata}
    return SUBMIT.evalsha(
        task=keys.task(task_id),
        events=keys.events(task_id),
        open=keys.open,
        id=task_id,
        request=text,
        tail=event_tail(task_id, "queued", fields),
        queue=queue,
        deadline_s=request.deadline_s,
    )


def to_send(tasks: Sequence[Submission], replies: Any) -> list[Waiting]:  # noqa: ANN401  # redis-py's replies
    """The queued tasks, whose messages must be sent, from the replies of `submit.lua`."""
    waiting = []
    for (task, _, _), (status, *former) in zip(tasks, replies, strict=True):
        if status != TaskStatus.QUEUED.value.encode():  # a later version may have others
            continue
        if former:
            request = GenerationRequest.model_validate_json(former[0])
            waiting.append(Submission.of(task.task_id, request, None).task)
        else:
            waiting.append(task)
    return waiting


def cancel_call(keys: Keys, task_id: str, request: bytes | None) -> dict[str, str]:
    """Keys and arguments of `cancel.lua`; `request` is the record's."""
    return {
        "task": keys.task(task_id),
        "events": keys.events(task_id),
        "open": keys.open,
        "pending_cancels": keys.pending_cancels,
        "id": task_id,
        "tail": event_tail(task_id, "cancelled", {"step": 0, "metadata": metadata_of(request)}),
        "control": keys.control,
    }


def status_pipeline(redis: Any, keys: Keys, task_ids: Sequence[str]) -> Any:  # noqa: ANN401  # sync or async
    """A pipeline that reads the status of each task; `status_of` parses each reply."""
    pipeline = redis.pipeline(transaction=False)
    for task_id in task_ids:
        pipeline.hget(keys.task(task_id), "status")
    return pipeline


def status_of(reply: bytes | None) -> TaskStatus | None:
    """Parse a status from the record or `cancel.lua`; None without a record."""
    return None if not reply or reply == b"unknown" else TaskStatus(reply.decode())


def numbered(reply: Any) -> list[NumberedEvent]:  # noqa: ANN401  # redis-py's reply
    """The events in the reply to XREAD of one stream."""
    return [
        (int(entry_id.split(b"-")[0]), _event(fields))
        for _, entries in reply
        for entry_id, fields in entries
    ]


#: Fields of the record from which `was_terminal` finds whether an event was the last one.
END_FIELDS = ("status", "seq")


def was_terminal(reply: Any, last: int) -> bool | None:  # noqa: ANN401  # redis-py's reply
    """Whether event `last` was the terminal one, from `END_FIELDS`; None without a record."""
    status, seq = reply
    if status is None:
        return None
    return TaskStatus(status.decode()).is_terminal and int(seq or 0) <= last


def metadata_of(request: bytes | None) -> dict[str, str]:
    """The metadata in a record's request; empty where the request is missing or invalid."""
    try:
        return GenerationRequest.model_validate_json(request or b"").metadata
    except ValidationError:
        return {}


def _event(fields: dict[bytes, bytes]) -> Event | None:
    try:
        return EVENT.validate_json(fields.get(b"event", b""))
    except ValidationError:
        return None
