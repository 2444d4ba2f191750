"""Tasks that end, and what becomes of their pushes."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from api_contracts import GenerationClient, Push, PushKind, PushState, TaskStatus
from tests.record.owners import take
from worker.config.push_targets import ReplyTarget

if TYPE_CHECKING:
    from redis import Redis

    from worker.record.task_record import TaskRecord

SECRET = SecretStr("whsec_" + "c2Vj" * 8)
TARGET = ReplyTarget(queue="shop", task="shop.picture_done")
#: Longest wait for what must come, in seconds.
COME_S = 60.0


def end(
    client: GenerationClient,
    records: TaskRecord,
    task_id: str,
    *,
    closed: bool = True,
    **wanted: Any,
) -> None:
    """Submit a task and end it as a worker does; close the record if `closed`."""
    client.submit({"prompt": "x", "model": client.keys.namespace, **wanted}, task_id)
    claimed = take(records, task_id)
    assert records.finish(claimed, TaskStatus.CANCELLED, {"step": 3}, {"step": 3})
    records.close(task_id) if closed else records.pushes.add(task_id)


def settled(client: GenerationClient, task_id: str, kind: PushKind) -> Push:
    """The push, once it is delivered or given up."""
    until_s = time.monotonic() + COME_S
    while (push := client.handle(task_id).pushes()[kind]).state is PushState.WAITING:
        assert time.monotonic() < until_s
        threading.Event().wait(0.02)
    return push


def replies(redis: Redis, queue: str = TARGET.queue) -> list[dict[str, Any]]:
    """The messages in the other application's queue."""
    return [json.loads(entry) for entry in redis.lrange(queue, 0, -1)]
