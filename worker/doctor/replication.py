"""Checks of how Redis is replicated: what a failover may lose, and clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api_contracts.redis_io.cluster import CLUSTER
from worker.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DURABLE_FIX = (
    "set min-replicas-to-write 1 and min-replicas-max-lag 10, with two replicas: else a primary"
    " that the sentinels have replaced goes on taking tasks and results, which are lost"
)


def check_replication(
    what: str, info: Mapping[str, Any], *, by_sentinel: bool
) -> Iterator[Finding]:
    """Findings from the answer to INFO; `by_sentinel` says that sentinels gave the server."""
    if info.get("cluster_enabled"):
        yield Finding(f"redis {what} cluster", ok=False, found="cluster mode is on", fix=CLUSTER)
    role, replicas = info.get("role", "master"), info.get("connected_slaves", 0)
    if role != "master":
        fix = "name the primary, or the sentinels: a replica refuses to write"
        yield Finding(f"redis {what} role", ok=False, found=f"is a {role}", fix=fix)
    elif by_sentinel or replicas:
        good = info.get("min_slaves_good_slaves")  # reported only where the setting is on
        found = "off" if good is None else f"on, {good} good replicas"
        yield Finding(
            f"redis {what} min-replicas-to-write",
            ok=good is not None,
            found=f"{found}, {replicas} connected",
            fix=_DURABLE_FIX,
        )
