"""After a restart or a failover of Redis no expired lease counts until all could renew."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationClient
from api_contracts.names import queue_lists
from api_contracts.redis_io.connection import connect
from tests.record.box import ids_waiting, lapse_all, post, taken
from tests.record.owners import now_s, until
from tests.record.reconcilers import Sent, reconciler
from worker import embedded
from worker.recovery.redis_outage import PrimaryWatch
from worker.recovery.timing import UNAVAILABLE_GRACE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from api_contracts.names import Keys

#: Shorter than the servers have run.
WITHIN_S = 0.3


def uptime_s(redis: Redis) -> int:
    """Seconds since the server started."""
    info: Any = redis.info("server")
    return int(info["uptime_in_seconds"])


@contextmanager
def pair(folder: Path) -> Iterator[tuple[Redis, Redis]]:
    """A primary and its replica, both of which have run for a second."""
    for name in ("a", "b"):
        (folder / name).mkdir()
    with (
        embedded.redis_server(folder / "a") as first,
        embedded.redis_server(folder / "b") as second,
        connect(first) as primary,
        connect(second) as replica,
    ):
        replica.replicaof("127.0.0.1", first.rpartition(":")[2].partition("/")[0])
        until(lambda: all(uptime_s(each) >= 1 for each in (primary, replica)))
        until(lambda: replica.info("replication")["master_link_status"] == "up")
        yield primary, replica


def promote(primary: Redis, replica: Redis) -> None:
    """Make the replica the primary once it has all of the other's data."""
    primary.wait(1, 5000)
    replica.replicaof("NO", "ONE")


@pytest.mark.parametrize("who", ["the same process", "another process"])
def test_a_promoted_replica_is_just_back(tmp_path: Path, keys: Keys, who: str) -> None:
    """A promoted replica counts as just back for the time asked for, once, in all processes."""
    with pair(tmp_path) as (primary, replica):
        first = PrimaryWatch(primary, keys)
        assert not first.is_just_back(WITHIN_S)
        promote(primary, replica)
        watch = PrimaryWatch(replica, keys)
        if who == "the same process":
            watch, watch._redis = first, replica
        assert watch.is_just_back(WITHIN_S)
        assert PrimaryWatch(replica, keys).is_just_back(WITHIN_S)
        until(lambda: not watch.is_just_back(WITHIN_S))
        assert not PrimaryWatch(replica, keys).is_just_back(WITHIN_S)


@pytest.mark.slow
def test_a_failover_takes_no_message_from_a_living_worker(tmp_path: Path, keys: Keys) -> None:
    """What has expired on the new primary is requeued once every worker could renew."""
    with pair(tmp_path) as (primary, replica):
        until(lambda: uptime_s(replica) >= UNAVAILABLE_GRACE_S)
        reconciler(primary, keys, Sent()).run_once()
        post(primary, "m", "t")
        taken(primary, "alive", "m")
        lapse_all(primary, "alive")
        promote(primary, replica)
        made = reconciler(replica, keys, Sent())
        began_s = time.monotonic()
        made.run_once()
        assert ids_waiting(replica, "m") == []

        def requeued() -> bool:
            made.run_once()
            return ids_waiting(replica, "m") == ["t"]

        until(requeued)
        assert time.monotonic() - began_s > UNAVAILABLE_GRACE_S - 1


def test_another_primary_has_all_tasks_read_again(redis: Redis, redis_url: str, keys: Keys) -> None:
    """Another primary, whose clock may be behind, has all open tasks read again."""
    made = reconciler(redis, keys, Sent())
    until(lambda: uptime_s(redis) >= UNAVAILABLE_GRACE_S)
    made.run_once()
    made._touched._since = now_s(redis) + 3600
    request = {"prompt": "x", "model": keys.namespace, "deadline_s": 0.001}
    with GenerationClient(redis_url, keys.namespace) as client:
        client.submit(request, "late")
    made._servers[0]._seen = "the former primary's"
    made.run_once()
    made.run_once()
    assert redis.hget(keys.task("late"), "status") == b"expired"
    redis.delete(*queue_lists(keys.namespace))


@pytest.mark.parametrize("odd", ["text", "a list"])
def test_an_odd_key_is_replaced(redis: Redis, keys: Keys, odd: str) -> None:
    """Another program's value counts as another server, and is replaced."""
    if odd == "text":
        redis.set(keys.primary, b"\xff x y")
    else:
        redis.rpush(keys.primary, "x")
    until(lambda: uptime_s(redis) >= 1)
    watch = PrimaryWatch(redis, keys)
    assert watch.is_just_back(WITHIN_S)
    until(lambda: not watch.is_just_back(WITHIN_S))
    replication: Any = redis.info("replication")
    kept: Any = redis.get(keys.primary)
    assert kept.decode().split()[0] == replication["master_replid"]
