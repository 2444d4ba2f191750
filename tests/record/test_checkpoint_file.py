"""Checkpoints and Redis's append-only file: they are not in it, since they would be most of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from api_contracts.names import Keys
from api_contracts.redis_io.connection import connect
from tests.record.owners import take, take_over, worker
from tests.service.conftest import wait_until
from worker import embedded
from worker.job_control import Control
from worker.record.celery_state import CeleryState
from worker.record.event_publisher import EventPublisher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from worker.record.claim import Claim
    from worker.record.task_record import TaskRecord

KEYS = Keys("file")
STATE = bytes(100_000)


@contextmanager
def server(folder: Path) -> Iterator[TaskRecord]:
    """A record in a Redis whose files are in a folder."""
    folder.mkdir(exist_ok=True)
    with embedded.redis_server(folder) as url, connect(url) as redis:
        yield worker(redis, KEYS, "one")


def save(records: TaskRecord, claim: Claim, step: int) -> None:
    silent: Any = lambda *_: None  # noqa: E731  # a name for its type
    publisher = EventPublisher(records, CeleryState(silent))
    publisher.watch(claim, Control())
    publisher.save_checkpoint(claim, step, STATE)
    publisher.flush(claim)
    publisher.close()
    assert saved_step(records.redis, claim) == step


def saved_step(redis: Redis, claim: Claim) -> int:
    step: Any = redis.hget(KEYS.task(claim.task_id), "checkpoint_step")
    return int(step or 0)


def aof(redis: Redis) -> Any:
    return redis.info("persistence")


def test_a_checkpoint_is_not_written_to_the_file(tmp_path: Path) -> None:
    """After a restart the record has no step and no checkpoint, and the next claim begins anew."""
    with server(tmp_path) as records:
        claim = take(records, "t")
        before = aof(records.redis)["aof_current_size"]
        save(records, claim, 5)
        assert records.load_checkpoint("t") == STATE
        assert aof(records.redis)["aof_current_size"] - before < len(STATE) / 10
    with server(tmp_path) as records:
        assert records.is_current(claim)
        assert records.load_checkpoint("t") is None
        assert take_over(records, "t").checkpoint_step == 0


def test_a_rewritten_file_has_step_and_checkpoint_of_one_moment(tmp_path: Path) -> None:
    """Later ones are lost both; the task resumes from those that were there at the rewrite."""
    with server(tmp_path) as records:
        claim = take(records, "t")
        save(records, claim, 5)
        records.redis.bgrewriteaof()
        wait_until(lambda: not aof(records.redis)["aof_rewrite_in_progress"])
        save(records, claim, 10)
    with server(tmp_path) as records:
        assert take_over(records, "t").checkpoint_step == 5
        assert records.load_checkpoint("t") == STATE


def test_a_replica_has_the_checkpoint(tmp_path: Path) -> None:
    """So that a failover loses none."""
    with server(tmp_path / "primary") as records, server(tmp_path / "replica") as replica:
        port = records.redis.connection_pool.connection_kwargs["port"]
        replica.redis.replicaof("127.0.0.1", port)
        wait_until(lambda: replica.redis.info("replication")["master_link_status"] == "up")
        claim = take(records, "t")
        save(records, claim, 5)
        wait_until(lambda: saved_step(replica.redis, claim) == 5)
        assert replica.load_checkpoint("t") == STATE
        # Until its first file is written the replica does not end.
        wait_until(lambda: not aof(replica.redis)["aof_rewrite_in_progress"])
