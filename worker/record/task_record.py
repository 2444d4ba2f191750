"""A task's record in Redis as the worker writes it: one owner at a time, one outcome."""

from __future__ import annotations

import json
import math
import uuid
from typing import TYPE_CHECKING, Any

from api_contracts.client.records import metadata_of
from api_contracts.names import MAX_MESSAGE_BYTES
from api_contracts.pushes import PushKind
from api_contracts.redis_io.scripts import event_tail, load
from worker.record.claim import Claim, ClaimAnswer, Ended, Held, NewEvent, WriteAnswer
from worker.record.push_queue import PushQueue
from worker.redis_retry import retry_redis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis import Redis

    from api_contracts.events import TaskStatus
    from api_contracts.names import Keys
    from worker.record.claim import NewCheckpoint

#: Most bytes of events and checkpoints in one call, unless a single one is larger, and most of
#: them: Redis serves no other client meanwhile. A preview has tens of kB, a checkpoint hundreds.
MAX_WRITE_BYTES, MAX_WRITES = 1024 * 1024, 256
#: Of an owner that died; ours have some tens, but Redis users of producers may write any.
MAX_OWNER_CHARS = 200


class TaskRecord:
    """Reads and writes records and events. Thread-safe; connects on first use."""

    def __init__(
        self, redis: Redis, keys: Keys, owner: str, *, record_ttl_s: int, lease_s: float
    ) -> None:
        """`owner` names this process in records and events."""
        self.redis, self.owner, self.keys = redis, owner, keys
        self._ttl_s, self._lease_s = record_ttl_s, lease_s
        self.pushes = PushQueue(redis, keys, record_ttl_s)
        self._claim, self._write, self._finish, self._requeue, self._close = (
            load(redis, "worker.record", name)
            for name in ("claim", "write", "finish", "requeue", "close")
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
        """Claim a task. `started` has the fields of the event, None to append no event.

        `deadline_s` counts from submission; `expires_at_s` (Unix time) is the message's own limit.
        Retried for up to `PATIENCE_S` while Redis is unavailable; repeating it changes nothing.
        Raises redis-py's `ResponseError` or `ValueError` for a record that can't be read.
        """
        token = uuid.uuid4().hex
        reply = retry_redis(
            lambda: self._claim(
                **self._keys_of(task_id),
                id=task_id,
                owner=self.owner,
                tail=None if started is None else self._tail(task_id, "started", started),
                request=request,
                deadline_s=deadline_s,
                max_attempts=max_attempts,
                token=token,
                lease_s=self._lease_s,
                expires_at=expires_at_s,
                queue=queue,
                max_bytes=MAX_MESSAGE_BYTES,
            )
        )
        match reply:
            case [b"held", _, _, owner]:
                return Held(owner.decode())
            case [b"ended", _, _, status, outcome]:
                return Ended(status.decode(), json.loads(outcome))
        answer, fence, attempt, submitted, claimed, step, *before = reply
        since, lost_owner = before or (b"0", b"")
        if not math.isfinite(float(submitted)):  # nan would stay in the sums of histograms
            raise ValueError(f"submitted_at is {submitted!r}, no time")
        claimed_at_s = float(claimed)
        return Claim(
            task_id,
            ClaimAnswer(answer.decode()),
            fence,
            token,
            attempt,
            float(submitted),
            claimed_at_s,
            step,
            _since_s(since, claimed_at_s),
            lost_owner.decode(errors="replace")[:MAX_OWNER_CHARS],
        )

    def is_known(self, task_id: str) -> bool:
        """Whether the key of the task's record exists, of any type."""
        return bool(self.redis.exists(self.keys.task(task_id)))

    def write(self, writes: Sequence[NewEvent | NewCheckpoint]) -> list[WriteAnswer | Exception]:
        """Write events and checkpoints of running tasks in one call, in order.

        Gives the answer to each. An error is the last answer: what comes after it is not written.
        Nor is what would have made the call larger than `MAX_WRITES` or `MAX_WRITE_BYTES`: where
        there are fewer answers, write the rest again. Not retried: only the terminal event must not
        be lost.
        """
        records: list[str] = []
        contents: list[Any] = []
        size_bytes = 0
        for each in writes[:MAX_WRITES]:
            task_id = each.claim.task_id
            if isinstance(each, NewEvent):
                target, step = self.keys.events(task_id), None
                content: str | bytes = self._tail(task_id, each.kind, each.fields)
            else:
                target, step, content = self.keys.checkpoint(task_id), each.step, each.state
            size_bytes += len(content)
            if records and size_bytes > MAX_WRITE_BYTES:
                break
            records += [self.keys.task(task_id), target]
            contents += [each.claim.token, step, content]
        return [
            answer if isinstance(answer, Exception) else WriteAnswer(answer)
            for answer in self._write(records=records, writes=contents)
        ]

    def load_checkpoint(self, task_id: str) -> bytes | None:
        """The checkpoint that an earlier attempt saved; None without one."""
        state: Any = retry_redis(lambda: self.redis.get(self.keys.checkpoint(task_id)))
        return state if isinstance(state, bytes) else None

    def metadata(self, task_id: str) -> dict[str, str]:
        """The metadata of the record's request."""
        request: Any = retry_redis(lambda: self.redis.hget(self.keys.task(task_id), "request"))
        return metadata_of(request)

    def is_current(self, claim: Claim) -> bool:
        """Whether the task is running and this is its latest claim."""
        reply: Any = retry_redis(
            lambda: self.redis.hmget(self.keys.task(claim.task_id), "token", "status")
        )
        return list(reply) == [claim.token.encode(), b"running"]

    def finish(
        self,
        claim: Claim,
        status: TaskStatus,
        outcome: Mapping[str, Any],
        fields: Mapping[str, Any],
        dead: str = "",
    ) -> bool:
        """Write the outcome and its event; False when another worker has claimed the task.

        `dead` is the reason of its dead letter, '' for none. Retried for up to `PATIENCE_S` while
        Redis is unavailable; repeating it changes nothing.
        """
        tail = self._tail(claim.task_id, status.value, fields)
        answer = retry_redis(
            lambda: self._finish(
                **self._keys_of(claim.task_id),
                checkpoint=self.keys.checkpoint(claim.task_id),
                dead=self.keys.dead,
                id=claim.task_id,
                token=claim.token,
                status=status.value,
                outcome=json.dumps(outcome),
                tail=tail,
                dead_reason=dead,
            )
        )
        return WriteAnswer(answer) is WriteAnswer.WRITTEN

    def requeue(self, claim: Claim, fields: Mapping[str, Any], *, counts: bool) -> WriteAnswer:
        """Return the task to `queued`; nothing is written when it is to be cancelled.

        `counts` says whether this was one of its attempts. Retried as `finish` is.
        """
        tail = self._tail(claim.task_id, "requeued", fields)
        answer = retry_redis(
            lambda: self._requeue(
                **self._keys_of(claim.task_id),
                id=claim.task_id,
                token=claim.token,
                tail=tail,
                counts=counts,
            )
        )
        return WriteAnswer(answer)

    def close(self, task_id: str) -> None:
        """Close an ended task whose Celery result is written: queue its pushes, start its TTL."""
        retry_redis(lambda: self.pushes.add(task_id))
        retry_redis(
            lambda: self._close(
                **self._keys_of(task_id),
                checkpoint=self.keys.checkpoint(task_id),
                pushes=self.keys.pushes,
                id=task_id,
                record_ttl_s=self._ttl_s,
                kinds=PushKind,
            )
        )

    def _keys_of(self, task_id: str) -> dict[str, str]:
        return {
            "task": self.keys.task(task_id),
            "events": self.keys.events(task_id),
            "open": self.keys.open,
        }

    def _tail(self, task_id: str, kind: str, fields: Mapping[str, Any]) -> str:
        return event_tail(task_id, kind, {"worker": self.owner, **fields})


def _since_s(stamp: bytes, claimed_at_s: float) -> float:
    """A moment before a claim; 0 for none. Redis users of producers may have written anything."""
    try:
        since_s = float(stamp)
    except ValueError:
        return 0.0
    return min(since_s, claimed_at_s) if since_s > 0 else 0.0
