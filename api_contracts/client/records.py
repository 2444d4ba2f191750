"""The caller's half of a task's record in Redis: submit, cancel, and read what workers wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from redis.exceptions import NoScriptError, RedisError

from api_contracts.events import EVENT, Event, TaskStatus
from api_contracts.names import Keys, queue_name
from api_contracts.pushes import FIELDS, Push, PushKind, pushes_of
from api_contracts.redis_io.connection import connect, unavailable
from api_contracts.redis_io.scripts import event_tail, load, read
from api_contracts.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Most events that one read gives.
MOST = 200
SUBMIT = read("api_contracts.redis_io", "submit")

#: An event's number, and the event; None for one of a kind that this version does not know.
Numbered = tuple[int, "Event | None"]


class Records:
    """Reads and writes records. Thread-safe; connects on first use.

    Every method but `read` and `is_told` raises `ServiceUnavailable` when Redis does not answer;
    those two let redis-py's own errors through, for whoever wants to wait and ask again.
    """

    def __init__(self, url: str, namespace: str) -> None:
        """Raises ValueError for what is no URL."""
        self.redis = connect(url)
        self.keys = Keys(namespace)
        self._cancel = load(self.redis, "api_contracts.redis_io", "cancel")

    def submit(
        self, tasks: Sequence[tuple[str, GenerationRequest, int | None]]
    ) -> list[tuple[str, GenerationRequest]]:
        """Write records of ids that have none, in one round trip; gives what is to be sent.

        A task is given as id, request and position in its queue. To be sent are those that wait,
        each with the request that came first under its id.
        """
        calls = [submission(self.keys, *task) for task in tasks]

        def ask() -> Any:  # noqa: ANN401  # redis-py's own replies
            pipeline = self.redis.pipeline(transaction=False)
            for call in calls:
                pipeline.evalsha(*call)
            try:
                return pipeline.execute()
            except NoScriptError:
                self.redis.script_load(SUBMIT.source)
                return ask()

        return waiting([task_id for task_id, *_ in tasks], reach(ask))

    def cancel(self, task_id: str) -> TaskStatus | None:
        """Ask for a task to end; gives the status that it had, None without a record."""
        request = reach(lambda: self.redis.hget(self.keys.task(task_id), "request"))
        call = cancellation(self.keys, task_id, request)
        return former_status(reach(lambda: self._cancel(**call)))

    def statuses(self, task_ids: Sequence[str]) -> list[TaskStatus | None]:
        """The status of each task, None for one without a record; one round trip."""
        pipeline = self.redis.pipeline(transaction=False)
        for task_id in task_ids:
            pipeline.hget(self.keys.task(task_id), "status")
        return [status_of(each) for each in reach(pipeline.execute)]

    def pushes(self, task_id: str) -> dict[PushKind, Push]:
        """How far an ended task's pushes have come, by what the request asked for."""
        return pushes_of(reach(lambda: self.redis.hmget(self.keys.task(task_id), FIELDS)))

    def read(self, task_id: str, after: int, block_s: float) -> list[Numbered]:
        """Events after number `after`; waits up to `block_s` for the first."""
        stream, block_ms = self.keys.events(task_id), max(1, int(block_s * 1000))
        reply = self.redis.xread({stream: f"{after}-0"}, count=MOST, block=block_ms)
        return numbered(reply)

    def is_told(self, task_id: str, last: int) -> bool | None:
        """Whether the task has ended and event `last` was its end; None without a record."""
        return was_the_end(self.redis.hmget(self.keys.task(task_id), "status", "seq"), last)


def submission(
    keys: Keys, task_id: str, request: GenerationRequest, position: int | None
) -> list[Any]:
    """The arguments of EVALSHA for `submit.lua`."""
    queue = queue_name(request.model)
    fields: dict[str, Any] = {"queue": queue, "position": position, "metadata": request.metadata}
    return SUBMIT.evalsha(
        task=keys.task(task_id),
        events=keys.events(task_id),
        open=keys.open,
        id=task_id,
        request=request.model_dump_json(exclude_unset=True),
        tail=event_tail(task_id, "queued", fields),
        queue=queue,
        deadline_s=request.deadline_s,
    )


def waiting(task_ids: Sequence[str], replies: Any) -> list[tuple[str, GenerationRequest]]:  # noqa: ANN401  # redis-py's own replies
    """The tasks that wait, by what `submit.lua` said of each."""
    return [
        (task_id, GenerationRequest.model_validate_json(first))
        for task_id, (status, first) in zip(task_ids, replies, strict=True)
        if status.decode() == TaskStatus.QUEUED
    ]


def cancellation(keys: Keys, task_id: str, request: bytes | None) -> dict[str, str]:
    """The keys and arguments of `cancel.lua`; `request` is the record's."""
    return {
        "task": keys.task(task_id),
        "events": keys.events(task_id),
        "open": keys.open,
        "pending_cancels": keys.pending_cancels,
        "id": task_id,
        "tail": event_tail(task_id, "cancelled", {"step": 0, "metadata": metadata_of(request)}),
        "control": keys.control,
    }


def former_status(reply: bytes) -> TaskStatus | None:
    """The status that a task had when it was cancelled."""
    return None if reply == b"unknown" else TaskStatus(reply.decode())


def status_of(reply: bytes | None) -> TaskStatus | None:
    """A record's field as a status."""
    return TaskStatus(reply.decode()) if reply else None


def numbered(reply: Any) -> list[Numbered]:  # noqa: ANN401  # as above
    """The events in an answer to XREAD of one stream."""
    streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply)
    return [
        (int(number.split(b"-")[0]), _event(fields))
        for _, entries in streams
        for number, fields in entries
    ]


def was_the_end(reply: Any, last: int) -> bool | None:  # noqa: ANN401  # as above
    """Whether a record's status and last number say that `last` was the end; None without one."""
    status, seq = reply
    if status is None:
        return None
    return TaskStatus(status.decode()).is_terminal and int(seq or 0) <= last


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
