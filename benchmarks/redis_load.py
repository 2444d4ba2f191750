"""What Redis does over some time: its processor time, its longest command, its answers to PING."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import quantiles
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis

#: Time between two PINGs, in seconds.
PING_PERIOD_S = 0.005


@dataclass(frozen=True)
class RedisLoad:
    """Share of a core, milliseconds, and the name of the longest command."""

    share: float
    longest_ms: float
    longest: str
    ping_p99_ms: float


def watch(redis: Redis, seconds: float) -> RedisLoad:
    """Redis's time, its longest command, and the answers to PING meanwhile."""
    redis.config_set("slowlog-log-slower-than", 200)
    redis.config_set("slowlog-max-len", 100_000)
    redis.slowlog_reset()
    began_s, used_s, pings = time.perf_counter(), _redis_cpu_s(redis), []
    while (now_s := time.perf_counter()) < began_s + seconds:
        redis.ping()
        pings.append(time.perf_counter() - now_s)
        time.sleep(PING_PERIOD_S)
    share = (_redis_cpu_s(redis) - used_s) / (time.perf_counter() - began_s)
    slow: Any = redis.slowlog_get(100_000)
    ours = [each for each in slow if not each["command"].startswith((b"SLOWLOG", b"CONFIG"))]
    longest = max(ours, key=lambda each: each["duration"], default=None)
    return RedisLoad(
        share=share,
        longest_ms=longest["duration"] / 1000 if longest else 0.2,
        longest=_name(longest["command"]) if longest else "none above 0.2 ms",
        ping_p99_ms=1000 * quantiles(pings, n=100)[98],
    )


def memory_bytes(redis: Redis) -> int:
    """Memory in use."""
    return int(redis.info("memory")["used_memory"])


def _redis_cpu_s(redis: Redis) -> float:
    used: Any = redis.info("cpu")
    return float(used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"])


def _name(command: bytes) -> str:
    """A command without its arguments; of a script the beginning of its digest."""
    return b" ".join(command.split()[:2])[:20].decode(errors="replace")
