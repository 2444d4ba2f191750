"""Claims in few words, and what Redis has of a task."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

from worker.record.claim import Claim, Ended, Held, NewCheckpoint, NewEvent, WriteAnswer
from worker.record.task_record import TaskRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis import Redis

    from api_contracts.names import Keys

STARTED = {"model": "default", "device": "cpu"}
PROGRESS = {"step": 1, "total_steps": 2, "eta_s": 0.5, "preview": None}
ERROR = {"code": "internal", "message": "m", "retryable": True, "details": {"k": "v"}}
RESULT: dict[str, Any] = {
    "images": [],
    "manifest_key": "outputs/t/manifest.json",
    "timings": dict.fromkeys(
        ("queued_s", "load_s", "encode_s", "denoise_s", "decode_s", "upload_s", "total_s"), 0.5
    ),
    "batch": 1.0,
    "model": "default",
    "scheduler": "ddim",
    "parameters": {},
    "truncated": [],
    "versions": {},
    "dtype": "float32",
}
TERMINAL = {"succeeded", "failed", "cancelled", "expired"}
#: Longest wait for a condition, in seconds.
PATIENCE_S = 30.0
#: How long records live after their end, and leases without a renewal, in seconds.
TTL_S, LEASE_S = 1000, 30.0


def worker(redis: Redis, keys: Keys, owner: str, lease_s: float = LEASE_S) -> TaskRecord:
    """The record as worker process `owner` accesses it."""
    return TaskRecord(redis, keys, owner, record_ttl_s=TTL_S, lease_s=lease_s)


def ask(  # noqa: PLR0913  # what a delivery is
    records: TaskRecord,
    task_id: str,
    *,
    deadline_s: float | None = None,
    expires_at_s: float | None = None,
    max_attempts: int = 3,
    request: str = '{"prompt":"x"}',
    queue: str = "generate.default",
) -> Claim | Held | Ended:
    """Claim as a worker does."""
    return records.claim(
        task_id,
        started=STARTED,
        request=request,
        queue=queue,
        deadline_s=deadline_s,
        expires_at_s=expires_at_s,
        max_attempts=max_attempts,
    )


def take(records: TaskRecord, task_id: str, **options: Any) -> Claim:
    """Claim a task that can be claimed."""
    claim = ask(records, task_id, **options)
    assert isinstance(claim, Claim)
    return claim


def append(records: TaskRecord, claim: Claim, kind: str, fields: Mapping[str, Any]) -> WriteAnswer:
    """Append an event alone; raises the error where it can't be written."""
    return _write(records, NewEvent(claim, kind, fields))


def save_checkpoint(records: TaskRecord, claim: Claim, step: int, state: bytes) -> WriteAnswer:
    """Save a checkpoint alone; raises as `append` does."""
    return _write(records, NewCheckpoint(claim, step, state))


def _write(records: TaskRecord, posted: NewEvent | NewCheckpoint) -> WriteAnswer:
    (answer,) = records.write([posted])
    if isinstance(answer, Exception):
        raise answer
    return answer


def lapse(redis: Redis, keys: Keys, task_id: str) -> None:
    """Let the lease of a task run out."""
    redis.hset(keys.task(task_id), "lease_until", "1.0")


def take_over(records: TaskRecord, task_id: str, **options: Any) -> Claim:
    """Claim a task after the lease of its owner, if it has one, ran out."""
    lapse(records.redis, records.keys, task_id)
    return take(records, task_id, **options)


def told(redis: Redis, keys: Keys, task_id: str) -> list[dict[str, Any]]:
    """The task's events as on the wire, oldest first; checks the entry ids."""
    entries: Any = redis.xrange(keys.events(task_id))
    events = [json.loads(fields[b"event"]) for _, fields in entries]
    assert [number.decode() for number, _ in entries] == [f"{event['seq']}-0" for event in events]
    return events


def kinds(redis: Redis, keys: Keys, task_id: str) -> list[str]:
    """The types of the task's events, oldest first."""
    return [event["type"] for event in told(redis, keys, task_id)]


def record(redis: Redis, keys: Keys, task_id: str) -> dict[str, str]:
    """The task's record."""
    found: Any = redis.hgetall(keys.task(task_id))
    return {name.decode(): value.decode() for name, value in found.items()}


def opened(redis: Redis, keys: Keys) -> set[str]:
    """The ids of the open tasks."""
    found: Any = redis.zrange(keys.open, 0, -1)
    return {name.decode() for name in found}


def ends_s(redis: Redis, keys: Keys, task_id: str) -> float:
    """The end of a task's lease, in Unix seconds."""
    return float(record(redis, keys, task_id)["lease_until"])


def now_s(redis: Redis) -> float:
    """Redis's clock, in Unix seconds."""
    seconds, microseconds = redis.time()
    return float(seconds) + float(microseconds) / 1e6


def is_subscribed(redis: Redis, keys: Keys) -> bool:
    """Whether a lease thread is subscribed to cancellations."""
    return bool(dict(redis.pubsub_numsub(keys.control))[keys.control.encode()])


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that another thread or Redis brings about."""
    deadline_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        pause.wait(0.005)


def requeued(records: TaskRecord, claim: Claim, *, counts: bool = False) -> WriteAnswer:
    """The answer to a requeue."""
    return records.requeue(claim, {"reason": "r"}, counts=counts)


def submitted_long_ago(redis: Redis, keys: Keys, task_id: str) -> None:
    redis.hset(keys.task(task_id), "submitted_at", "1000.0")
