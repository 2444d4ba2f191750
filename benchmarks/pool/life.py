"""The calls of one task's life, as `worker.execution` and kombu make them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import TaskRevokedError

from benchmarks.pool.plan import QUEUE, REQUEST
from worker.broker.held_messages import UNACKED, UNACKED_INDEX
from worker.execution.outcome import TaskCancelled, TaskSucceeded, final_event, to_record

if TYPE_CHECKING:
    from redis import Redis

    from worker.record.claim import Claim, Ended, Held
    from worker.record.task_record import TaskRecord

Ending = TaskSucceeded | TaskCancelled


def claim(record: TaskRecord, task_id: str) -> Claim | Held | Ended:
    """As `Executor` claims a task."""
    return record.claim(
        task_id,
        started={"model": "default", "device": "cuda", "metadata": {}},
        request=json.dumps(REQUEST),
        queue=QUEUE,
        deadline_s=None,
        expires_at_s=None,
        max_attempts=3,
    )


def finish(record: TaskRecord, claimed: Claim, outcome: Ending) -> None:
    """As `Executor` writes an outcome."""
    status, fields = final_event(outcome)
    record.finish(claimed, status, to_record(outcome), fields | {"metadata": {}})


def store_result(backend: Any, task_id: str, outcome: Ending) -> None:  # noqa: ANN401  # Celery has no types
    """As `Generate` stores Celery's result."""
    result: Any
    if isinstance(outcome, TaskSucceeded):
        state, result = states.SUCCESS, outcome.result.model_dump(mode="json")
    else:
        state, result = states.REVOKED, TaskRevokedError(str(outcome))
    backend.store_result(task_id, result, state)


def acknowledge(redis: Redis, tag: str) -> None:
    """As kombu's QoS deletes a message."""
    pipeline = redis.pipeline()
    pipeline.zrem(UNACKED_INDEX, tag)
    pipeline.hdel(UNACKED, tag)
    pipeline.execute()
