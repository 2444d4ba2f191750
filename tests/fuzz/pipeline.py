"""Runs an entry through the worker's own code, in one process and without Redis.

All of it is the real code, from the entry's bytes to the events and Celery's result: transport,
validation of messages, Celery's request and tracer, the task, the executor, the record. Only
Redis's scripts are replaced, and no engine runs: an accepted request ends before it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from celery import Celery
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.exceptions import Ignore
from celery.worker.request import Request
from kombu import Connection
from kombu.serialization import loads
from kombu.transport.virtual import Message

from api_contracts.errors import GenerationFailed
from api_contracts.events import EVENT, Failed
from api_contracts.names import MAX_MESSAGE_BYTES, TASK_NAME, is_task_id, queue_name
from api_contracts.redis_io.connection import connect
from api_contracts.redis_io.scripts import read
from worker.broker.intake import Taken
from worker.broker.transport import Channel
from worker.broker.validate_message import WANTS_RESULT, normalize
from worker.config.settings import Settings
from worker.execution.celery_task import Generate
from worker.execution.claim_gate import ClaimGate
from worker.execution.executor import Executor
from worker.execution.outcome import TaskCancelled
from worker.metrics import REJECTED
from worker.record.task_record import TaskRecord
from worker.recovery.active_tasks import ActiveTasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from api_contracts.events import Event
    from worker.execution.resolved_request import ResolvedRequest

QUEUE = queue_name("default")
#: Largest event that answers a refused message, in bytes.
ANSWER_BYTES = 20_000


@dataclass
class Verdict:
    """The outcome of one entry."""

    kind: Literal["rejected", "refused", "accepted"]
    #: The task's last event; None when it was rejected.
    event: Event | None = None
    #: Time for all of it, in seconds.
    took_s: float = 0.0


@dataclass
class _Attempts:
    """Takes the place of `worker.execution.attempt.Attempts`."""

    accepted: list[ResolvedRequest] = field(default_factory=list)

    def run(self, _claim: object, request: ResolvedRequest, _control: object) -> TaskCancelled:
        """Note an accepted request, and end its task."""
        request.job({})
        self.accepted.append(request)
        return TaskCancelled(0)


class Pipeline:
    """Processes entries, one after the other."""

    def __init__(self) -> None:
        """Connects to nothing."""
        settings = Settings(device="cpu")
        self._app = Celery("pipeline", backend="cache+memory://", set_as_current=False)
        self._app.conf.update(accept_content=["json"])
        redis = connect("redis://127.0.0.1:1/0")
        self._encoder: Any = redis.connection_pool.get_encoder()
        self._claims = TaskRecord(redis, settings.keys, "host:1", record_ttl_s=60, lease_s=15)
        self._attempts = _Attempts()
        lease: Any = SimpleNamespace(is_well=True)
        parts: dict[str, Any] = {"gate": ClaimGate(lease), "attempts": self._attempts}
        executor = Executor(
            settings,
            self._claims,
            ActiveTasks(),
            **parts,
            device="cpu",
            on_broken=lambda _reason: None,
        )
        self._app.register_task(Generate(executor))
        self._trace = build_tracer(TASK_NAME, self._app.tasks[TASK_NAME], app=self._app)
        self._channel = Connection("memory://").channel()
        self._events: list[Event] = []
        #: The largest body that was passed to a slot.
        self.largest_body_bytes = 0
        self._replace_script("claim", self._claimed)
        self._replace_script("finish", self._finished)
        self._replace_script("close", lambda _: 1)
        self._replace_script("queue_pushes", lambda _: 0)

    def take(self, entry: bytes, *, whole: bool = True) -> Verdict:
        """Process an entry; raises errors that the worker's consumer does not handle.

        Unless `whole`, the task is called without Celery's tracer, which takes most of the time to
        format tracebacks.
        """
        began_s = time.perf_counter()
        rejected = _rejections()
        self._events.clear()
        self._attempts.accepted.clear()
        dropped: list[str] = []
        delivered: list[dict[str, Any]] = []
        channel: Any = SimpleNamespace(
            qos=SimpleNamespace(drop=dropped.append),
            connection=SimpleNamespace(_deliver=lambda whole, _queue: delivered.append(whole)),
        )
        too_large = len(entry) if len(entry) > MAX_MESSAGE_BYTES else 0  # as `take.lua` has it
        taken = Taken("host:1/tag", QUEUE, 5, b"" if too_large else entry, too_large)
        Channel._pass_on(channel, taken)
        assert len(dropped) + len(delivered) == 1
        is_rejected = not (delivered and self._consume(delivered[0], whole=whole))
        took_s = time.perf_counter() - began_s
        if is_rejected:
            assert not self._events
            assert len(delivered) == 1 or _rejections() == rejected + 1
            return Verdict("rejected", took_s=took_s)
        (event,) = self._events
        return Verdict("accepted" if self._attempts.accepted else "refused", event, took_s)

    def _consume(self, raw: dict[str, Any], *, whole: bool) -> bool:
        """Consume and run a message; False when there is no task id to answer."""
        message = Message(raw, channel=self._channel)
        if normalize(message) is not None:
            return False
        task = self._app.tasks[TASK_NAME]
        request = Request(message, app=self._app, task=task, decoded=False)
        assert not request.revoked()
        self.largest_body_bytes = max(self.largest_body_bytes, len(message.body))
        args, kwargs, embed = loads(
            message.body, message.content_type, message.content_encoding, {"application/json"}
        )
        # As Celery's own `fast_trace_task`: values embedded in the body take precedence.
        context = {**request.request_dict, "args": args, "kwargs": kwargs} | (embed or {})
        if whole:
            self._trace(request.id, args, kwargs, context)
            kept = task.backend.get_state(request.id)
            assert not message.headers[WANTS_RESULT] or kept in ("FAILURE", "REVOKED"), kept
        else:
            task.request_stack.push(Context(context))
            try:
                _protected_call(task, *args, **kwargs)
            except (GenerationFailed, Ignore) as end:
                task.backend.encode(task.backend.prepare_exception(end))
            finally:
                task.pop_request()
        assert [event.task_id for event in self._events] == [message.headers["id"]]
        task.backend.client.cache.clear()
        return True

    def _replace_script(self, script: str, answer: Callable[[dict[str, Any]], Any]) -> None:
        """Replace a script of the record; checks that Redis could encode its arguments."""

        def call(**values: Any) -> Any:
            for part in read("worker.record", script).ordered(values):
                for each in part:
                    self._encoder.encode(each)
            return answer(values)

        if script == "queue_pushes":
            self._claims.pushes._add = call
        else:
            setattr(self._claims, f"_{script}", call)

    def _claimed(self, values: dict[str, Any]) -> list[Any]:
        if values["tail"]:
            EVENT.validate_json(_numbered(values["tail"], '"resumed_from_step":null,'))
            json.loads(values["request"])
        return [b"run", 1, 1, b"0", b"0", 0]

    def _finished(self, values: dict[str, Any]) -> int:
        json.loads(values["outcome"])
        event = EVENT.validate_json(_numbered(values["tail"]))
        assert event.task_id == values["id"]
        assert not isinstance(event, Failed) or len(values["tail"]) < ANSWER_BYTES
        self._events.append(event)
        return 0


def _protected_call(self: Any, *args: Any, **kwargs: Any) -> None:
    """Celery wraps tasks into a function whose first argument has this name."""
    self.run(*args, **kwargs)


def can_be_answered(entry: bytes) -> bool:
    """Whether an entry has the task's name and a valid id where Celery's protocol 2 has them."""
    if len(entry) > MAX_MESSAGE_BYTES:
        return False
    try:
        whole = json.loads(entry)
    except (ValueError, RecursionError):
        return False
    headers = whole.get("headers") if isinstance(whole, dict) else None
    return (
        isinstance(headers, dict)
        and headers.get("task") == TASK_NAME
        and is_task_id(headers.get("id"))
    )


def _rejections() -> float:
    return sum(
        sample.value
        for metric in REJECTED.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


def _numbered(tail: str, more: str = "") -> str:
    """An event as the Lua scripts write it."""
    return '{"seq":1,"attempt":1,' + more + tail
