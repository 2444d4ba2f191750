"""What each process tells of itself in `ns:pool`, for the exporter. Written with its leases."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from api_contracts.names import Keys

#: An unchanged entry is written again after so long, in seconds: each write is a Redis command
#: more in a renewal, of which an idle process should make few.
REWRITE_PERIOD_S = 30.0
#: Seconds without a renewal after which a process does not count as well; or two leases, if that
#: is longer. An idle process renews more often.
MIN_STALE_S = 30.0


class WorkerState(BaseModel):
    """What a process tells of itself; other versions may tell more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: Tasks that it runs at once.
    slots: int = Field(ge=1)
    #: Tasks that it has claimed.
    running: int = Field(ge=0)
    #: Why it takes no tasks; None if it takes them. That leases can't be renewed is not reported
    #: here: then nothing is written, and `ns:workers` shows it.
    refusal: str | None
    device: str

    @classmethod
    def parse(cls, raw: bytes) -> Self | None:
        """The state in an entry; None for an entry that this version does not understand."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError:
            return None


class PoolEntry:
    """The entry of this process. Not thread-safe: the lease's thread owns it."""

    def __init__(self, key: str, owner: str, state: Callable[[], WorkerState | None]) -> None:
        """`state` returns what to tell; None tells nothing."""
        self._key, self._owner, self._state = key, owner, state
        self._written: WorkerState | None = None
        self._queued: WorkerState | None = None
        self._written_s = float("-inf")

    def queue(self, pipeline: Any) -> None:  # noqa: ANN401  # redis-py's, sync
        """Add the write to a pipeline, if the entry has changed or is old."""
        state = self._queued = self._state()
        is_old = time.monotonic() - self._written_s >= REWRITE_PERIOD_S
        if state is not None and (is_old or state != self._written):
            told = state.model_dump() | {"at": round(time.time(), 3)}
            pipeline.hset(self._key, self._owner, json.dumps(told))
            self._written = None

    def confirm(self) -> None:
        """Note that the pipeline was executed; without this, `queue` adds the write again."""
        if self._written is None:
            self._written, self._written_s = self._queued, time.monotonic()


def leave_pool(redis: Redis, keys: Keys, owners: Sequence[str | bytes]) -> None:
    """Remove processes from `ns:workers`, and their entries: no other call finds those again."""
    pipeline = redis.pipeline()
    pipeline.zrem(keys.workers, *owners)
    pipeline.hdel(keys.pool, *owners)
    pipeline.execute()


def stale_after_s(lease_s: float) -> float:
    """How long after its last renewal a process is not counted as well."""
    return max(2 * lease_s, MIN_STALE_S)
