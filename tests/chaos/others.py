"""Tasks that wait below those of the schedule for the whole run: `--others`.

They are submitted before the callers start, at the lowest priority and to the same queue, so that
lists, takes and the reconciler's walk have them in the way. A worker runs one only while it has
nothing better to do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from api_contracts import GenerationClient
from api_contracts.names import Keys
from tests.chaos import messages
from worker.recovery.reconciler import ROUND_READS
from worker.recovery.timing import RECONCILE_PERIOD_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis import Redis

#: Their ids are this and a number. None of `submissions.py` begins with it.
PREFIX = "others-"
#: The last of the priorities.
PRIORITY = 9
#: The index of their request in the pool: one picture, two steps.
REQUEST = 0
#: Tasks that one round trip submits or reads.
SLICE = 500
_T = TypeVar("_T")
_TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})


@dataclass(frozen=True)
class Other:
    """One of the other tasks at the end of the run, when no worker runs."""

    #: Of the record; None without one.
    status: str | None
    #: Result or error in the record.
    outcome: Any
    #: Its events: number of the entry, and type.
    events: tuple[tuple[int, str], ...]
    #: Its messages, waiting or held.
    messages: int
    #: Whether it is among the open tasks, where the reconciler looks for it.
    is_open: bool

    @property
    def has_ended(self) -> bool:
        """Whether the task's record says that it has ended."""
        return self.status in _TERMINAL

    @property
    def ends(self) -> list[str]:
        """The types of the task's terminal events."""
        return [kind for _, kind in self.events if kind in _TERMINAL]


def ids(count: int) -> list[str]:
    """The ids of `count` other tasks."""
    return [f"{PREFIX}{number:05d}" for number in range(count)]


def walks_s(count: int) -> float:
    """Longest time of two walks of the reconciler, past so many messages and records.

    A lost message is sent again by the second, if the first had passed it; see `docs/delivery.md`.
    """
    return 2 * 2 * count / ROUND_READS * RECONCILE_PERIOD_S


def submit(url: str, count: int, request: dict[str, Any]) -> None:
    """Submit the other tasks; raises what the client raises."""
    with GenerationClient(url) as client:
        for some in _slices(ids(count)):
            client.submit_many([request | {"priority": PRIORITY}] * len(some), some)


def only_others_are_left(redis: Redis) -> bool:
    """Whether all open tasks and messages are the others', and each open task has a message."""
    keys = Keys()
    found = messages.count_by_task(redis)
    opened = {task_id.decode() for task_id in cast("list[bytes]", redis.zrange(keys.open, 0, -1))}
    theirs = all(each is not None and each.startswith(PREFIX) for each in [*opened, *found])
    return theirs and opened <= found.keys() and not redis.zcard(keys.pushes)


def collect(redis: Redis, count: int) -> dict[str, Other]:
    """Read what the laws need of each; no worker may run."""
    keys, made = Keys(), {}
    waiting = messages.count_by_task(redis) if count else {}
    for some in _slices(ids(count)):
        pipeline = redis.pipeline(transaction=False)
        for task_id in some:
            pipeline.hmget(keys.task(task_id), "status", "outcome")
            pipeline.xrange(keys.events(task_id))
            pipeline.zscore(keys.open, task_id)
        answers = iter(pipeline.execute())
        for task_id, (status, outcome), stream, score in zip(
            some, answers, answers, answers, strict=True
        ):
            made[task_id] = Other(
                status.decode() if status is not None else None,
                json.loads(outcome or b"null"),
                tuple(_events(stream)),
                waiting.get(task_id, 0),
                score is not None,
            )
    return made


def drop(redis: Redis, count: int) -> None:
    """Remove all that the other tasks left in Redis; no worker may run."""
    keys = Keys()
    for some in _slices(ids(count)):
        pipeline = redis.pipeline(transaction=False)
        for task_id in some:
            own = keys.task(task_id), keys.events(task_id), keys.checkpoint(task_id)
            pipeline.delete(*own, f"celery-task-meta-{task_id}")
        pipeline.zrem(keys.open, *some)
        pipeline.execute()
    _drop_messages(redis, frozenset(ids(count)))


def _drop_messages(redis: Redis, tasks: frozenset[str]) -> None:
    for name in messages.LISTS:
        found = list(messages.entries(redis, name))
        kept = [each for each in found if messages.task_of(each, held=False) not in tasks]
        if len(kept) < len(found):
            redis.delete(name)
            for some in _slices(kept):
                redis.rpush(name, *some)
    held = cast("dict[bytes, bytes]", redis.hgetall(messages.HELD))
    for tag, entry in held.items():
        if messages.task_of(entry, held=True) in tasks:
            redis.hdel(messages.HELD, tag)
            redis.zrem(messages.HELD_INDEX, tag)


def _events(stream: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> Iterator[tuple[int, str]]:
    for number, fields in stream:
        yield int(number.split(b"-")[0]), str(json.loads(fields[b"event"])["type"])


def _slices(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[first : first + SLICE] for first in range(0, len(items), SLICE))
