"""Notices that Redis restarted or failed over: leases on it may be older than those that were held.

A promoted replica has run for long and was never out of reach, but no worker could renew while
there was no primary, and its copy of the leases may lag behind. Its replication id is new, as that
of a restarted Redis is. The reconciler that sees it first writes it down for those after it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys


class PrimaryWatch:
    """What one Redis is, and since when. Every method raises what redis-py raises."""

    def __init__(
        self, redis: Redis, keys: Keys, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """`on_change` is called when it is first seen, restarted or another server."""
        self._redis, self._key, self._on_change = redis, keys.primary, on_change
        self._seen: str | None = None
        self._until_s = float("-inf")

    def is_just_back(self, within_s: float) -> bool:
        """Whether it started, or was first seen as the primary, within the last `within_s`."""
        started: Any = self._redis.info("server")
        if started["uptime_in_seconds"] < within_s:
            return True
        replication: Any = self._redis.info("replication")
        found = replication.get("master_replid")  # some hosted servers do not tell
        if found != self._seen:
            self._until_s = time.monotonic() + self._left_s(str(found), within_s)
            self._seen = found
            self._on_change()
        return time.monotonic() < self._until_s

    def _left_s(self, replication_id: str, within_s: float) -> float:
        """Seconds until the server has been the primary for `within_s`."""
        seconds, microseconds = self._redis.time()
        now_s = seconds + microseconds / 1e6
        seen, since_s = self._read()
        if seen != replication_id:
            since_s = now_s if seen else 0.0  # the first of all reconcilers: nobody held a lease
            self._redis.set(self._key, f"{replication_id} {since_s:.6f}")
        return since_s + within_s - now_s

    def _read(self) -> tuple[str, float]:
        """The replication id that was seen last, and since when; '' for none."""
        try:
            value: Any = self._redis.get(self._key)
            seen, _, since_s = (value or b"").decode().partition(" ")
            return seen, float(since_s or 0)
        except (ResponseError, ValueError) as error:  # written by another program
            if isinstance(error, ResponseError) and "WRONGTYPE" not in str(error):
                raise
            return "unknown", 0.0
