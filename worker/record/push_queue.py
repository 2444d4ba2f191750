"""The pushes of ended tasks in Redis: which are due, and the outcome of each try.

A push delivers the terminal event of a task in one way (`PushKind`). It is queued once that event
is in the stream, and stays until it is delivered or given up: if a worker dies, others retry it.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from pydantic import TypeAdapter
from redis.exceptions import ResponseError

from api_contracts.events import End
from api_contracts.pushes import Push, PushKind, PushState
from api_contracts.redis_io.connection import WRONG_TYPE
from api_contracts.redis_io.scripts import load
from api_contracts.request_types import is_traceparent
from worker import metrics

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys

logger = logging.getLogger(__name__)

_Values: TypeAlias = "list[bytes | None]"
_Entries: TypeAlias = "list[tuple[bytes, dict[bytes, bytes]]]"
#: How long a worker holds a push that it has taken, in seconds: longer than any try takes.
HOLD_S = 120.0
#: Largest event that is pushed, in bytes. The longest prompts of the most images take 3 MiB.
MAX_EVENT_BYTES = 2**23
#: The state of a push whose record or event can't be read.
LOST = Push(state=PushState.GIVEN_UP, error="its record or its final event can't be read")
_END: TypeAdapter[End] = TypeAdapter(End)


@dataclass(frozen=True)
class Due:
    """A push that this process may try, for `HOLD_S`."""

    task_id: str
    kind: PushKind
    #: Its state before this try.
    push: Push
    #: The request's field: an object for `reply_to`, a URL for `webhook`.
    target: Any
    #: The terminal event: its number, and its JSON as in the stream.
    seq: int
    event: bytes
    #: Of its record: where its spans belong, and the fence of its last claim, 0 without one.
    traceparent: str = ""
    submitted_at_s: float = 0.0
    fence: int = 0


class PushQueue:
    """Thread-safe; every method raises what redis-py raises."""

    def __init__(self, redis: Redis, keys: Keys, record_ttl_s: int) -> None:
        """`redis` has the records; the TTL of a record starts when its last push is settled."""
        self._redis, self._keys, self._ttl_s = redis, keys, record_ttl_s
        #: Set when this process has queued pushes.
        self.added = threading.Event()
        self._add, self._take, self._settle_push = (
            load(redis, "worker.record", name)
            for name in ("queue_pushes", "take_pushes", "settle_push")
        )

    def add(self, task_id: str) -> bool:
        """Queue the pushes an ended task's request asks for, once; False when none was added."""
        task, pushes = self._keys.task(task_id), self._keys.pushes
        number = self._add(task=task, pushes=pushes, id=task_id, kinds=PushKind)
        if number:
            self.added.set()
        return bool(number)

    def take(self, most: int) -> list[Due]:
        """Pushes that are due, the longest due first; others may take them after `HOLD_S`."""
        found: Any = self._take(pushes=self._keys.pushes, most=most, hold_s=HOLD_S)
        return [due for member in found if (due := self._read(member)) is not None]

    def settle(self, due: Due, push: Push, again_s: float | None) -> None:
        """Store the outcome of a try; the next try is in `again_s`, None for no further one."""
        self._settle(due.task_id, due.kind, push, again_s)

    def _settle(self, task_id: str, kind: PushKind, push: Push, again_s: float | None) -> None:
        self._settle_push(
            task=self._keys.task(task_id),
            events=self._keys.events(task_id),
            pushes=self._keys.pushes,
            open=self._keys.open,
            id=task_id,
            kind=kind,
            state=push.model_dump_json(exclude_none=True),
            retry_s=again_s,
            record_ttl_s=self._ttl_s,
            kinds=PushKind,
        )

    def _read(self, member: bytes) -> Due | None:
        """Parse a member of the queue; None for one that can't be read, which is dropped."""
        kind, _, task_id = member.decode(errors="replace").partition(":")
        try:
            return self._due_of(PushKind(kind), task_id)
        except (ValueError, LookupError, TypeError, RecursionError, ResponseError) as error:
            if isinstance(error, ResponseError) and WRONG_TYPE not in str(error):
                raise
            logger.error("push %r dropped: its record can't be read: %r", member, error)  # noqa: TRY400  # not our bug
            metrics.PUSHES.labels("unknown", "lost").inc()
            if kind in list(PushKind):
                self._settle(task_id, PushKind(kind), LOST, None)
            self._redis.zrem(self._keys.pushes, member)
            return None

    def _due_of(self, kind: PushKind, task_id: str) -> Due:
        task, stream = self._keys.task(task_id), self._keys.events(task_id)
        fields_read = ("request", kind.field, "submitted_at", "fence")
        request, push, submitted_at, fence = cast("_Values", self._redis.hmget(task, fields_read))
        ((_, fields),) = cast("_Entries", self._redis.xrevrange(stream, count=1))
        event = fields[b"event"]
        if len(event) > MAX_EVENT_BYTES:
            message = f"an event of {len(event)} bytes"
            raise ValueError(message)
        end = _END.validate_json(event)
        if end.task_id != task_id:
            message = f"an event of {end.task_id[:200]!r}"
            raise ValueError(message)
        wanted = json.loads(request or b"")
        traceparent = wanted.get("traceparent")
        return Due(
            task_id, kind, Push.model_validate_json(push or b""), wanted[kind], end.seq, event,
            traceparent if is_traceparent(traceparent) else "",
            float(submitted_at or 0), int(fence or 0),
        )  # fmt: skip
