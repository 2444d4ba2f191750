"""The way in for other backends: order pictures, follow them, fetch the outcome, cancel."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Self, cast

from kombu.exceptions import OperationalError
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from api_contracts import errors, names
from api_contracts.events import EVENT, Cancelled, Event, Expired, Failed, Succeeded, TaskStatus
from api_contracts.request import GenerationRequest, parse_request
from api_contracts.scripts import event_tail, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from api_contracts.result import GenerationResult

#: Longest wait inside Redis before the client looks up again.
_BLOCK_S = 5.0
#: First and longest pause between attempts to reach Redis again.
_RECONNECT_S = (0.05, 2.0)


class GenerationClient:
    """Orders pictures from the workers that share a broker and a namespace. Thread-safe."""

    def __init__(
        self,
        broker_url: str,
        namespace: str = names.DEFAULT_NAMESPACE,
        *,
        events_url: str | None = None,
        record_ttl_s: int = 86_400,
    ) -> None:
        """Connect to nothing yet; `events_url` is the broker's unless the workers differ."""
        self.keys = names.Keys(namespace)
        self.record_ttl_s = record_ttl_s
        self.redis = _connect(events_url or broker_url)
        self._broker = _connect(broker_url)
        from celery import Celery  # noqa: PLC0415  # a third of this package's import time

        self._celery = Celery("sag-client", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            task_serializer="json",
            broker_transport_options=names.TRANSPORT_OPTIONS,
            broker_connection_timeout=5,
        )
        self._submit = load(self.redis, "api_contracts", "submit")
        self._cancel = load(self.redis, "api_contracts", "cancel")

    def submit(
        self, request: GenerationRequest | dict[str, Any], task_id: str | None = None
    ) -> TaskHandle:
        """Order the pictures of `request`; the same `task_id` again is the same task.

        Raises `InvalidRequest` with every fault, `ServiceUnavailable` when Redis is away: then
        submit again with the same `task_id`, which can never make a second task.
        """
        data = request.to_wire() if isinstance(request, GenerationRequest) else request
        checked = parse_request(data)
        task_id = _checked_id(str(uuid.uuid4()) if task_id is None else task_id)
        queue = names.queue_name(checked.model)
        fields: dict[str, Any] = {"queue": queue, "position": None, "metadata": checked.metadata}
        keys = [self.keys.task(task_id), self.keys.events(task_id), self.keys.open]
        args = [task_id, _json(checked), event_tail(task_id, "queued", fields), queue]
        status, kept = _reach(lambda: self._submit(keys=keys, args=args))
        if status.decode() == TaskStatus.QUEUED:
            first = GenerationRequest.model_validate_json(kept)
            self._send(task_id, first.to_wire(), names.queue_name(first.model), first.priority)
        return TaskHandle(self, task_id)

    def handle(self, task_id: str) -> TaskHandle:
        """The handle of a task that was submitted before, here or elsewhere."""
        return TaskHandle(self, _checked_id(task_id))

    def status_many(self, task_ids: Iterable[str]) -> dict[str, TaskStatus | None]:
        """The status of each task, None for one without a record; one round trip."""
        wanted = [_checked_id(task_id) for task_id in task_ids]
        pipeline = self.redis.pipeline(transaction=False)
        for task_id in wanted:
            pipeline.hget(self.keys.task(task_id), "status")
        found = _reach(pipeline.execute)
        return {
            task_id: TaskStatus(status.decode()) if status else None
            for task_id, status in zip(wanted, found, strict=True)
        }

    def queue_depths(self, models: Iterable[str] = (names.DEFAULT_MODEL,)) -> dict[str, int]:
        """Messages that wait, by model; those that a worker holds are not among them."""
        wanted = list(models)
        pipeline = self._broker.pipeline(transaction=False)
        for model in wanted:
            for key in names.queue_lists(model):
                pipeline.llen(key)
        lengths = _reach(pipeline.execute)
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

    def _send(self, task_id: str, wire: dict[str, Any], queue: str, priority: int) -> None:
        try:
            self._celery.send_task(
                names.TASK_NAME,
                kwargs={"request": wire},
                task_id=task_id,
                queue=queue,
                priority=priority,
                kwargsrepr="<request>",
                retry_policy={"max_retries": 5, "interval_max": 1.0},
            )
        except (OperationalError, RedisConnectionError, RedisTimeoutError) as error:
            message = f"could not enqueue task {task_id}: {error}"
            raise errors.ServiceUnavailable(message) from error


class TaskHandle:
    """One task, to follow, to wait for and to cancel."""

    def __init__(self, client: GenerationClient, task_id: str) -> None:
        self.task_id = task_id
        self._client = client
        self._record = client.keys.task(task_id)
        self._stream = client.keys.events(task_id)

    def events(self, after: int = 0, timeout: float | None = None) -> Iterator[Event]:
        """Every event from number `after` + 1 on, past ones first, the terminal one last.

        Goes on through lost connections. Raises `TaskNotFound` without a record, `WaitTimeout`
        when nothing new came for `timeout` seconds. Events of kinds that this version does not
        know are skipped.
        """
        last, quiet_since, pause = after, time.monotonic(), _RECONNECT_S[0]
        while True:
            left_s = _BLOCK_S if timeout is None else quiet_since + timeout - time.monotonic()
            try:
                entries = self._read(last, max(0.0, min(_BLOCK_S, left_s)))
                if not entries and self._is_told(last):
                    return
                pause = _RECONNECT_S[0]
            except (RedisConnectionError, RedisTimeoutError):
                time.sleep(min(pause, max(left_s, 0)))
                pause = min(pause * 2, _RECONNECT_S[1])
                entries = []
            for seq, event in entries:
                last, quiet_since = seq, time.monotonic()
                if event is not None:
                    yield event
                    if event.is_terminal:
                        return
            if not entries and timeout is not None and time.monotonic() - quiet_since >= timeout:
                message = f"task {self.task_id} said nothing for {timeout:g} s"
                raise errors.WaitTimeout(message)

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the end and give the result.

        Raises `GenerationFailed`, `GenerationCancelled` or `GenerationExpired` for the other
        ends, `WaitTimeout` after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        after = 0
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            event = next(self.events(after, left_s))
            after = event.seq
            match event:
                case Succeeded(result=result):
                    return result
                case Failed(error=error):
                    raise errors.GenerationFailed.of(error)
                case Cancelled(step=step):
                    message = f"task {self.task_id} was cancelled at step {step}"
                    raise errors.GenerationCancelled(message)
                case Expired(step=step):
                    message = f"the deadline passed at step {step}"
                    raise errors.GenerationExpired(
                        errors.ErrorCode.DEADLINE_EXCEEDED.value, message
                    )
                case _:
                    continue

    def status(self) -> TaskStatus:
        """Where the task is now; raises `TaskNotFound` without a record."""
        status = self._client.status_many([self.task_id])[self.task_id]
        if status is None:
            raise errors.TaskNotFound(self.task_id)
        return status

    def cancel(self) -> TaskStatus | None:
        """Ask for the task to end, and give the status that it had.

        A waiting task ends at once, a running one at its next step; one that has ended stays as
        it is. For an id without a record (None) the wish is kept for when it turns up.
        """
        client = self._client
        keys = [self._record, self._stream, client.keys.open]
        tail = event_tail(self.task_id, "cancelled", {"step": 0, "metadata": self._metadata()})
        args: list[str | int] = [
            self.task_id,
            tail,
            client.record_ttl_s,
            client.keys.control,
        ]
        status = _reach(lambda: client._cancel(keys=keys, args=args)).decode()  # noqa: SLF001  # one module
        return None if status == "unknown" else TaskStatus(status)

    def _read(self, after: int, block_s: float) -> list[tuple[int, Event | None]]:
        redis = self._client.redis
        block_ms = max(1, int(block_s * 1000))
        reply = redis.xread({self._stream: f"{after}-0"}, count=200, block=block_ms)
        if not reply and not redis.hexists(self._record, "status"):
            raise errors.TaskNotFound(self.task_id)
        streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply)
        return [
            (int(number.split(b"-")[0]), _event(fields))
            for _, entries in streams
            for number, fields in entries
        ]

    def _is_told(self, last: int) -> bool:
        """Whether the task has ended and event `last` was its end."""
        reply = self._client.redis.hmget(self._record, "status", "seq")
        status, seq = cast("list[bytes | None]", reply)
        return bool(status and TaskStatus(status.decode()).is_terminal and int(seq or 0) <= last)

    def _metadata(self) -> dict[str, str]:
        request = _reach(lambda: self._client.redis.hget(self._record, "request"))
        if not request:
            return {}
        try:
            return GenerationRequest.model_validate_json(request).metadata
        except ValidationError:
            return {}


def _connect(url: str) -> Redis:
    return Redis.from_url(
        url,
        socket_timeout=_BLOCK_S * 2,
        socket_connect_timeout=_BLOCK_S,
        socket_keepalive=True,
        health_check_interval=10,
        protocol=2,
    )


def _event(fields: dict[bytes, bytes]) -> Event | None:
    try:
        return EVENT.validate_json(fields[b"event"])
    except ValidationError:
        return None


def _reach(call: Callable[[], Any]) -> Any:  # noqa: ANN401  # redis-py's own replies
    try:
        return call()
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise errors.ServiceUnavailable(f"Redis does not answer: {error}") from error


def _json(request: GenerationRequest) -> str:
    return request.model_dump_json(exclude_unset=True)


def _checked_id(task_id: str) -> str:
    if not names.is_task_id(task_id):
        fault = errors.Fault(
            where="task_id", what="is not a task id", limit="1 to 128 of A-Z a-z 0-9 . _ -"
        )
        raise errors.InvalidRequest([fault])
    return task_id
