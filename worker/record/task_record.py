"""The worker's half of a task's record in Redis: claim once, write behind a fence, end once."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api_contracts.client.records import metadata_of
from api_contracts.pushes import PushKind
from api_contracts.redis_io.scripts import event_tail, load
from worker.record.push_queue import PushQueue
from worker.redis_retry import retry_redis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis import Redis

    from api_contracts.events import TaskStatus
    from api_contracts.names import Keys


#: What `requeue.lua` gives for a task that somebody wants to end.
CANCEL_WAITS = 2


@dataclass(frozen=True)
class Claim:
    """The right to write to a task until somebody else claims it."""

    task_id: str
    #: `run`, or why it must end at once: `cancelled`, `expired` (its own deadline), `overdue` (its
    #: message's), `exhausted`.
    answer: str
    fence: int
    attempt: int
    #: Redis's clock, Unix seconds.
    submitted_at_s: float
    claimed_at_s: float
    #: Of the checkpoint that an earlier attempt left; 0 without one.
    checkpoint_step: int = 0


@dataclass(frozen=True)
class Held:
    """A message of a task that another worker runs: a duplicate."""

    owner: str


@dataclass(frozen=True)
class Ended:
    """The task has ended already, as `status`, with this outcome."""

    status: str
    outcome: dict[str, Any]


class TaskRecord:
    """Reads and writes records and events. Thread-safe; connects on first use."""

    def __init__(
        self, redis: Redis, keys: Keys, owner: str, *, record_ttl_s: int, lease_s: float
    ) -> None:
        """`owner` names this process in records and events."""
        self.redis, self.owner, self.keys = redis, owner, keys
        self._ttl_s, self._lease_s = record_ttl_s, lease_s
        self.pushes = PushQueue(redis, keys, record_ttl_s)
        self._claim, self._append, self._finish, self._requeue, self._checkpoint, self._close = (
            load(redis, "worker.record", name)
            for name in ("claim", "append", "finish", "requeue", "checkpoint", "close")
        )

    def claim(  # noqa: PLR0913  # what a delivery is
        self,
        task_id: str,
        *,
        started: Mapping[str, Any] | None,
        request: str,
        queue: str,
        deadline_s: float | None,
        expires_at_s: float | None,
        max_attempts: int,
    ) -> Claim | Held | Ended:
        """Ask for a task; `started` are the fields of its event, None to write none.

        `deadline_s` counts from submission; `expires_at_s` (Unix time) is the message's own limit.
        """
        tail = "" if started is None else self._tail(task_id, "started", started)
        limits = ["" if each is None else repr(each) for each in (deadline_s, expires_at_s)]
        args: list[str | int | float] = [
            task_id, self.owner, tail, request, limits[0], max_attempts, uuid.uuid4().hex,
            self._lease_s, limits[1], queue,
        ]  # fmt: skip
        reply = retry_redis(lambda: self._claim(keys=self._three(task_id), args=args))
        answer = reply[0].decode()
        if answer == "held":
            return Held(reply[3].decode())
        if answer == "ended":
            return Ended(reply[3].decode(), json.loads(reply[4]))
        fence, attempt, submitted, claimed, step = reply[1:]
        return Claim(task_id, answer, fence, attempt, float(submitted), float(claimed), step)

    def is_known(self, task_id: str) -> bool:
        """Whether there is something where the task's record should be."""
        return bool(self.redis.exists(self.keys.task(task_id)))

    def append(self, claim: Claim, kind: str, fields: Mapping[str, Any]) -> int:
        """Add an event: -1 when the task is no longer ours, 1 when a cancel waits, 0 otherwise.

        Tried once: an event in the middle may be skipped.
        """
        tail = self._tail(claim.task_id, kind, fields)
        answer: int = self._append(keys=self._three(claim.task_id)[:2], args=[claim.fence, tail])
        return answer

    def keep(self, claim: Claim, step: int, state: bytes) -> int:
        """Keep a checkpoint: -1 when the task is no longer ours. Tried once."""
        keys = [self.keys.task(claim.task_id), self.keys.checkpoint(claim.task_id)]
        answer: int = self._checkpoint(keys=keys, args=[claim.fence, step, state])
        return answer

    def kept(self, task_id: str) -> bytes | None:
        """The checkpoint that an earlier attempt left."""
        state: Any = retry_redis(lambda: self.redis.get(self.keys.checkpoint(task_id)))
        return state if isinstance(state, bytes) else None

    def metadata(self, task_id: str) -> dict[str, str]:
        """The metadata of the record's request."""
        request: Any = retry_redis(lambda: self.redis.hget(self.keys.task(task_id), "request"))
        return metadata_of(request)

    def is_ours(self, claim: Claim) -> bool:
        """Whether nobody has claimed the task since, nor ended it."""
        reply: Any = retry_redis(
            lambda: self.redis.hmget(self.keys.task(claim.task_id), "fence", "status")
        )
        return list(reply) == [str(claim.fence).encode(), b"running"]

    def finish(
        self,
        claim: Claim,
        status: TaskStatus,
        outcome: Mapping[str, Any],
        fields: Mapping[str, Any],
        dead: str = "",
    ) -> bool:
        """Write the end and its event; False when another owner has the task.

        `dead` is why it goes to the dead letters too. Waits for Redis up to `PATIENCE_S`; writing
        it twice is writing it once.
        """
        tail = self._tail(claim.task_id, status.value, fields)
        keys = [*self._three(claim.task_id), self.keys.checkpoint(claim.task_id), self.keys.dead]
        args: list[str | int] = [
            claim.task_id, claim.fence, status.value, json.dumps(outcome), tail, dead,
        ]  # fmt: skip
        return bool(retry_redis(lambda: self._finish(keys=keys, args=args)))

    def requeue(self, claim: Claim, fields: Mapping[str, Any], *, counts: bool) -> bool | None:
        """Give the task back; False when another owner has it, None when it is to be cancelled.

        `counts` says whether this was one of its attempts.
        """
        tail = self._tail(claim.task_id, "requeued", fields)
        args: Sequence[str | int] = [claim.task_id, claim.fence, tail, int(counts)]
        answer = retry_redis(lambda: self._requeue(keys=self._three(claim.task_id), args=args))
        return None if answer == CANCEL_WAITS else bool(answer)

    def close(self, task_id: str) -> None:
        """Celery's result says how an ended task ended: it may be pushed, and forgotten."""
        retry_redis(lambda: self.pushes.note(task_id))
        keys = [*self._three(task_id), self.keys.checkpoint(task_id), self.keys.pushes]
        retry_redis(lambda: self._close(keys=keys, args=[task_id, self._ttl_s, *PushKind]))

    def _three(self, task_id: str) -> list[str]:
        return [self.keys.task(task_id), self.keys.events(task_id), self.keys.open]

    def _tail(self, task_id: str, kind: str, fields: Mapping[str, Any]) -> str:
        return event_tail(task_id, kind, {"worker": self.owner, **fields})
