"""The worker's half of a task's record in Redis: claim once, write behind a fence, end once."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api_contracts.scripts import event_tail, load
from worker.patience import persist

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from redis import Redis

    from api_contracts.events import TaskStatus
    from api_contracts.names import Keys


@dataclass(frozen=True)
class Claim:
    """The right to write to a task until somebody else claims it."""

    task_id: str
    #: `run`, or why it must end at once: `cancelled`, `expired`, `exhausted`.
    answer: str
    fence: int
    attempt: int
    #: Redis's clock, Unix seconds.
    submitted_at_s: float
    claimed_at_s: float


@dataclass(frozen=True)
class Held:
    """A first delivery of a task that another worker runs: a duplicate."""

    owner: str


@dataclass(frozen=True)
class Ended:
    """The task has ended already, as `status`, with this outcome."""

    status: str
    outcome: dict[str, Any]


class Status:
    """Reads and writes records and events. Thread-safe; connects on first use."""

    def __init__(self, redis: Redis, keys: Keys, owner: str, record_ttl_s: int) -> None:
        """`owner` names this worker in records and events."""
        self.redis, self.owner = redis, owner
        self._keys, self._ttl_s = keys, record_ttl_s
        self._claim, self._append, self._finish, self._requeue = (
            load(redis, "worker", name) for name in ("claim", "append", "finish", "requeue")
        )

    def claim(  # noqa: PLR0913  # what a delivery is
        self,
        task_id: str,
        *,
        started: Mapping[str, Any] | None,
        request: str,
        deadline_s: float | None,
        max_attempts: int,
        redelivered: bool,
        message: str,
    ) -> Claim | Held | Ended:
        """Ask for a task; `started` are the fields of its event, None to write none.

        `message` is the delivery tag: a redelivered copy of another message takes nothing over.
        """
        tail = "" if started is None else self._tail(task_id, "started", started)
        deadline = "" if deadline_s is None else repr(deadline_s)
        args: list[str | int] = [
            task_id, self.owner, tail, request, deadline, max_attempts, int(redelivered),
            uuid.uuid4().hex, message,
        ]  # fmt: skip
        reply = persist(lambda: self._claim(keys=self._three(task_id), args=args))
        answer = reply[0].decode()
        if answer == "held":
            return Held(reply[3].decode())
        if answer == "ended":
            return Ended(reply[3].decode(), json.loads(reply[4]))
        return Claim(task_id, answer, reply[1], reply[2], float(reply[3]), float(reply[4]))

    def append(self, claim: Claim, kind: str, fields: Mapping[str, Any]) -> int:
        """Add an event: -1 when the task is no longer ours, 1 when a cancel waits, 0 otherwise.

        Tried once: an event in the middle may be skipped.
        """
        tail = self._tail(claim.task_id, kind, fields)
        answer: int = self._append(keys=self._three(claim.task_id)[:2], args=[claim.fence, tail])
        return answer

    def cancels(self, claims: Iterable[Claim]) -> Iterator[Claim]:
        """Those of `claims` whose cancel was asked for, in one round trip."""
        asked = list(claims)
        pipeline = self.redis.pipeline(transaction=False)
        for claim in asked:
            pipeline.hget(self._keys.task(claim.task_id), "cancel_requested")
        for claim, wanted in zip(asked, pipeline.execute(), strict=True):
            if wanted:
                yield claim

    def finish(
        self,
        claim: Claim,
        status: TaskStatus,
        outcome: Mapping[str, Any],
        fields: Mapping[str, Any],
    ) -> bool:
        """Write the end and its event; False when another owner has the task.

        Waits for Redis up to `PATIENCE_S`; writing it twice is writing it once.
        """
        tail = self._tail(claim.task_id, status.value, fields)
        keys = [*self._three(claim.task_id), self._keys.checkpoint(claim.task_id)]
        args: list[str | int] = [
            claim.task_id, claim.fence, status.value, json.dumps(outcome), tail, self._ttl_s,
        ]  # fmt: skip
        return bool(persist(lambda: self._finish(keys=keys, args=args)))

    def requeue(self, claim: Claim, fields: Mapping[str, Any]) -> bool:
        """Give the task back, this attempt not counted; False when another owner has it."""
        tail = self._tail(claim.task_id, "requeued", fields)
        args: list[str | int] = [claim.task_id, claim.fence, tail]
        return bool(persist(lambda: self._requeue(keys=self._three(claim.task_id), args=args)))

    def _three(self, task_id: str) -> list[str]:
        return [self._keys.task(task_id), self._keys.events(task_id), self._keys.open]

    def _tail(self, task_id: str, kind: str, fields: Mapping[str, Any]) -> str:
        return event_tail(task_id, kind, {"worker": self.owner, **fields})
