"""Reads from Redis what waits, what runs, and which workers are well.

The cost depends on the numbers of models and workers, never on how many tasks wait: only lengths,
ends of lists and ranges of scores are read, in three round trips.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from api_contracts.names import PRIORITIES, is_task_id, queue_lists
from api_contracts.redis_io.connection import WRONG_TYPE, connect_impatiently
from api_contracts.redis_io.scripts import load
from worker.broker.held_messages import UNACKED
from worker.recovery.pool_entry import WorkerState, stale_after_s
from worker.recovery.timing import FORGET_WORKER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.config.settings import Settings

#: Longest wait for an answer of Redis, in seconds; each call is tried twice.
ANSWER_TIMEOUT_S = 2.0
#: Longest message whose task id is read, in bytes: about 25 times a usual one.
MAX_HEAD_BYTES = 64 * 1024
#: Longest `submitted_at` that is read, in bytes; a worker or a client writes 17.
MAX_TIME_BYTES = 64


@dataclass(frozen=True)
class PoolStatus:
    """Queue and pool at one moment."""

    #: By model and priority, zeros included. Of `SAG_MODELS` only.
    waiting_by: dict[str, dict[int, int]]
    #: Messages that a worker holds and has not claimed, and those that it has. Of all models.
    held: int
    running: int
    #: Since its submission, of the task that has waited longest among those that are next in their
    #: lists; 0 where nothing waits, None where no such message has a record.
    oldest_wait_s: float | None
    #: Processes that have renewed leases in the last `FORGET_WORKER_S` and have not left, and those
    #: of them that take tasks.
    workers: int
    workers_well: int
    #: Of one worker: the mean of those that are well, else `SAG_SLOTS`.
    slots_per_worker: float
    #: Of the workers that are well.
    slots: int
    slots_free: int
    #: Why workers take no tasks, by owner.
    refusals: dict[str, str]
    #: Of Redis's stream; about the newest 10,000 are kept.
    dead_letters: int
    pushes_due: int
    pushes_pending: int
    #: Tasks that have not ended or whose Celery result is not written, and since when the one that
    #: was written longest ago was not written.
    open_tasks: int
    oldest_open_s: float

    @property
    def waiting(self) -> int:
        """Messages of `SAG_MODELS` that no worker has taken."""
        return sum(sum(each.values()) for each in self.waiting_by.values())

    @property
    def backlog(self) -> float:
        """All work that is not done, in workers: how many would be busy with it at once."""
        return (self.waiting + self.held + self.running) / self.slots_per_worker


class PoolReader:
    """Reads the status of a pool. Raises redis-py's errors while Redis is unavailable."""

    def __init__(self, settings: Settings) -> None:
        """Connect on first use."""
        self._settings, self._keys = settings, settings.keys
        self._broker = connect_impatiently(settings.broker_url.get_secret_value(), ANSWER_TIMEOUT_S)
        self._events = connect_impatiently(
            settings.events_redis_url.get_secret_value(), ANSWER_TIMEOUT_S
        )
        self._queues = load(self._broker, "worker.exporter", "queues")
        self._records = load(self._events, "worker.exporter", "records")

    def read(self) -> PoolStatus:
        """Return the status now."""
        waiting_by, heads, taken = self._read_queues()
        keys, pipeline = self._keys, self._events.pipeline(transaction=False)
        pipeline.zrange(keys.workers, 0, -1, withscores=True)
        pipeline.hgetall(keys.pool)
        pipeline.xlen(keys.dead)
        pipeline.zcard(keys.pushes)
        pipeline.zcard(keys.open)
        renewed, entries, *lengths = pipeline.execute(raise_on_error=False)
        dead, pending, is_open = (_value(each, 0) for each in lengths)
        now, due, oldest, submitted = self._records(
            open=keys.open,
            pushes=keys.pushes,
            tasks=[keys.task(task_id) for task_id in heads],
            max_bytes=MAX_TIME_BYTES,
        )
        now_s, oldest_s = float(now), _seconds(_value(oldest, None) or None)
        pool = _pool(_value(renewed, []), _value(entries, {}), now_s, self._settings)
        return PoolStatus(
            waiting_by=waiting_by,
            held=taken - (running := min(taken, pool.running)),
            running=running,
            oldest_wait_s=_oldest_wait_s(waiting_by, submitted, now_s),
            workers=len(pool.well) + len(pool.refusals),
            workers_well=len(pool.well),
            slots_per_worker=pool.slots_per_worker,
            slots=sum(each.slots for each in pool.well),
            slots_free=sum(max(0, each.slots - each.running) for each in pool.well),
            refusals=pool.refusals,
            dead_letters=dead,
            pushes_due=_value(due, 0),
            pushes_pending=pending,
            open_tasks=is_open,
            oldest_open_s=0.0 if oldest_s is None else max(0.0, now_s - oldest_s),
        )

    def _read_queues(self) -> tuple[dict[str, dict[int, int]], list[str], int]:
        """Waiting messages, the ids of those that are next in a list, and how many are taken."""
        models = list(self._settings.models)
        lists = [key for model in models for key in queue_lists(model)]
        taken, replies, heads = self._queues(unacked=UNACKED, lists=lists, max_bytes=MAX_HEAD_BYTES)
        lengths = iter([_value(each, 0) for each in replies])
        waiting = {model: dict(zip(PRIORITIES, lengths, strict=False)) for model in models}
        ids = [each for each in map(_task_id, heads) if each is not None]
        return waiting, ids, _value(taken, 0)


@dataclass(frozen=True)
class _Pool:
    well: list[WorkerState]
    slots_per_worker: float
    running: int
    refusals: dict[str, str]


def _pool(
    renewed: Sequence[tuple[bytes, float]],
    entries: dict[bytes, bytes],
    now_s: float,
    settings: Settings,
) -> _Pool:
    """What the workers say. One of an earlier version says nothing: `SAG_SLOTS` is assumed."""
    stale_s = stale_after_s(settings.lease_s)
    silent_state = WorkerState(slots=settings.slots, running=0, refusal=None, device="unknown")
    well: list[WorkerState] = []
    running, refusals = 0, {}
    for owner, renewed_s in renewed:
        if now_s - renewed_s >= FORGET_WORKER_S:
            continue  # its machine is gone; the next worker that starts removes it
        state = WorkerState.parse(entries.get(owner, b"")) or silent_state
        refusal = state.refusal
        if now_s - renewed_s > stale_s:
            refusal = f"has renewed no lease for {now_s - renewed_s:.0f} s"
        else:
            running += state.running
        if refusal is None:
            well.append(state)
        else:
            refusals[owner.decode(errors="replace")] = refusal
    mean_slots = sum(each.slots for each in well) / len(well) if well else float(settings.slots)
    return _Pool(well, mean_slots, running, refusals)


def _oldest_wait_s(
    waiting_by: dict[str, dict[int, int]], submitted: Sequence[Any], now_s: float
) -> float | None:
    times_s = (_seconds(_value(each, None)) for each in submitted)
    known = [each for each in times_s if each is not None]
    if known:
        return max(0.0, now_s - min(known))
    return None if any(any(each.values()) for each in waiting_by.values()) else 0.0


def _seconds(raw: bytes | None) -> float | None:
    """A time in a record or of a set; None without one, and for what is no finite number."""
    try:
        seconds = float(raw or "nan")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None


def _task_id(message: bytes | None) -> str | None:
    """The valid task id in a message's headers; None without one."""
    try:
        task_id = json.loads(message or b"")["headers"]["id"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return task_id if is_task_id(task_id) else None


def _value(reply: Any, default: Any) -> Any:  # noqa: ANN401  # redis-py's replies
    """A reply; `default` for a key of another type, which a producer may have written."""
    if isinstance(reply, ResponseError) and WRONG_TYPE in str(reply):
        return default
    if isinstance(reply, Exception):
        raise reply
    return reply
