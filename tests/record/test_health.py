"""What `health` reports, by who answers and by the list of who has renewed leases."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from api_contracts.errors import ServiceUnavailable
from tests.record.owners import until
from worker import embedded
from worker.broker.held_messages import HeldMessages
from worker.cli import health, main
from worker.cli.health import WorkerAnswer, WorkerHealth, host_workers
from worker.config.settings import Settings
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.lease import Lease
from worker.recovery.timing import FORGET_WORKER_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from api_contracts.names import Keys

HOST = socket.gethostname()
#: Owners of two processes with one name, and of one on another host.
OLD, NEW, FAR = f"{HOST}:cpu:old", f"{HOST}:cpu:new", "elsewhere:cpu:x"


@pytest.fixture
def found(redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with which one process of this host answers, `NEW`."""
    answer = WorkerAnswer(NEW, None, "cpu", [], [])
    monkeypatch.setattr(health, "all_workers", lambda *_: {f"cpu@{HOST}": answer})
    return Settings(broker_url=redis_url, namespace=namespace)


@pytest.fixture
def lease(redis: Redis, keys: Keys) -> Iterator[Lease]:
    """The lease of `NEW`, whose thread is not started; it renews often."""
    made = Lease(redis, keys, ActiveTasks(), HeldMessages(redis), list, 3600.0, owner=NEW)
    made._period_s = made._idle_period_s = 0.02
    yield made
    made.close()


def listed(redis: Redis, keys: Keys) -> set[str]:
    """The owners in the list of workers."""
    found: Any = redis.zrange(keys.workers, 0, -1)
    return {owner.decode() for owner in found}


def test_a_process_that_starts_removes_its_dead_predecessor(
    lease: Lease, found: Settings, redis: Redis, keys: Keys
) -> None:
    """A process that starts removes its dead predecessor of host and name, and the long silent."""
    now, others = time.time(), (f"{HOST}:cpu2:x", f"{HOST}:c:x", FAR)
    redis.zadd(keys.workers, dict.fromkeys((OLD, *others), now))
    redis.zadd(keys.workers, {"gone:cpu:x": now - FORGET_WORKER_S - 1})
    lease.start()
    until(lambda: listed(redis, keys) == {NEW, *others})
    assert f"cpu@{HOST} ({OLD})" not in host_workers(found)


def test_a_process_that_froze_beside_one_of_its_name_is_reported(
    lease: Lease, found: Settings, redis: Redis, keys: Keys
) -> None:
    """A process that renewed after another of its name started stays in the list, as silent."""
    redis.zadd(keys.workers, {OLD: time.time()})
    lease.start()
    until(lambda: listed(redis, keys) == {NEW})
    redis.zadd(keys.workers, {OLD: time.time()})  # its next renewal, and its last
    for _ in range(2):
        renewed_s = lease._renewed_s
        until(lambda renewed_s=renewed_s: lease._renewed_s > renewed_s)  # type: ignore[misc]
    assert f"cpu@{HOST} ({OLD})" in host_workers(found)


def test_a_process_that_renewed_and_does_not_answer_is_reported(
    found: Settings, redis: Redis, keys: Keys
) -> None:
    """A process that renewed and does not answer is reported for some minutes, on its host only."""
    now = time.time()
    redis.zadd(keys.workers, {OLD: now - 9, NEW: now, FAR: now - 9})
    workers = host_workers(found)
    assert set(workers) == {f"cpu@{HOST}", f"cpu@{HOST} ({OLD})"}
    assert workers[f"cpu@{HOST}"].refusal is None
    silent = workers[f"cpu@{HOST} ({OLD})"]
    assert (workers[f"cpu@{HOST}"].answers, silent.answers) == (True, False)
    refusal = silent.refusal
    assert refusal is not None
    assert refusal.startswith("does not answer; it last renewed its leases ")
    redis.zadd(keys.workers, {OLD: now - FORGET_WORKER_S - 1})
    assert set(host_workers(found)) == {f"cpu@{HOST}"}


def test_a_redis_of_records_that_never_answers_is_given_up_within_seconds(
    found: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`health` gives up in seconds on a Redis of records that never answers, and names workers."""
    monkeypatch.setattr(health, "RECORDS_TIMEOUT_S", 0.1)
    with socket.create_server((embedded.LOOPBACK, 0)) as silent:
        url = f"redis://{embedded.LOOPBACK}:{silent.getsockname()[1]}/0"
        settings = Settings(broker_url=found.broker_url, events_url=url)
        began_s = time.monotonic()
        assert set(host_workers(settings)) == {f"cpu@{HOST}"}
        assert time.monotonic() - began_s < 2.0


SILENT = WorkerHealth("does not answer", [], answers=False)
REFUSING = WorkerHealth("no lease could be renewed for 9 s", [])


@pytest.mark.parametrize(
    ("workers", "status", "alive"),
    [
        ({"a": WorkerHealth(None, [])}, 0, 0),
        ({"a": WorkerHealth(None, []), "b": REFUSING}, 1, 0),
        ({"a": WorkerHealth(None, []), "b": SILENT}, 1, 1),
        ({}, 1, 1),
        (None, 3, 0),
    ],
    ids=["well", "one refuses", "one is silent", "none answers", "no Redis"],
)
def test_a_worker_is_not_restarted_for_what_a_restart_does_not_mend(
    monkeypatch: pytest.MonkeyPatch,
    workers: dict[str, WorkerHealth] | None,
    status: int,
    alive: int,
) -> None:
    """`health` asks who takes tasks, `--alive` who is silent; running tasks survive an outage."""

    def ask(_: Settings) -> dict[str, WorkerHealth]:
        if workers is None:
            raise ServiceUnavailable("Redis does not answer")
        return workers

    monkeypatch.setattr(health, "host_workers", ask)
    run = CliRunner().invoke
    assert run(main.app, ["health"]).exit_code == status
    assert run(main.app, ["health", "--alive"]).exit_code == alive
