"""What a reading costs Redis, by Redis's own count."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from api_contracts import GenerationClient
from api_contracts.names import queue_lists
from tests.exporter.conftest import pool_settings
from tests.record.box import letter
from worker import embedded
from worker.exporter.pool_status import PoolReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.settings import Settings

WAITING = 100_000
#: Commands whose cost does not grow with a key's size, or with its logarithm alone. Those that
#: grow with the number of workers are `hgetall`, and `zrange` of `ns:workers`.
CONSTANT = {
    "evalsha", "llen", "lindex", "hlen", "hstrlen", "hget", "xlen", "zcard", "zcount", "time",
    "zrange",
}  # fmt: skip
BY_WORKERS = {"hgetall"}
READINGS = 20


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis whose counters no one else moves."""
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


def readings(redis: Redis, settings: Settings) -> dict[str, tuple[float, float]]:
    """Calls and microseconds by command, for one reading."""
    reader = PoolReader(settings)
    reader.read()  # connects
    redis.config_resetstat()
    for _ in range(READINGS):
        reader.read()
    found: Any = redis.info("commandstats")
    own = {name.removeprefix("cmdstat_"): each for name, each in found.items()}
    return {
        name: (each["calls"] / READINGS, each["usec"] / READINGS)
        for name, each in own.items()
        if not name.startswith(("config", "info"))
    }


def test_a_long_queue_costs_no_more(own_redis: str) -> None:
    """A reading of 100,000 waiting tasks takes the same commands as of one, and no more time.

    A command that walked the list once would take above 1 ms; all together are allowed 1 ms more.
    """
    settings = pool_settings(own_redis, "cost")
    with Redis.from_url(own_redis) as redis, GenerationClient(own_redis, "cost") as client:
        client.submit({"prompt": "x", "model": "cost"}, "first")
        short = readings(redis, settings)
        pipeline, waiting = redis.pipeline(), queue_lists("cost")[5]
        for first in range(1, WAITING, 1000):
            ids = [f"task-{number}" for number in range(first, first + 1000)]
            pipeline.lpush(waiting, *(json.dumps(letter(each)) for each in ids))
            pipeline.zadd("cost:open", dict.fromkeys(ids, 1e10))
            pipeline.zadd("cost:pushes", {f"webhook:{each}": 1.0 for each in ids})
            pipeline.execute()
        found = PoolReader(settings).read()
        assert min(found.waiting, found.open_tasks, found.pushes_due) >= WAITING
        long = readings(redis, settings)
    calls = {name: count for name, (count, _) in long.items()}
    assert calls == {name: count for name, (count, _) in short.items()}
    assert set(calls) <= CONSTANT | BY_WORKERS
    short_us, long_us = (sum(us for _, us in each.values()) for each in (short, long))
    print(f"{sum(calls.values()):.0f} commands, {short_us:.0f} and {long_us:.0f} us: {long}")
    assert long_us < short_us + 1000
