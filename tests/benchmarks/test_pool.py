"""The benchmark of a pool: simulated workers do to Redis what real ones do, in every mode."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from api_contracts import GenerationClient
from api_contracts.message import task_message
from api_contracts.names import DEFAULT_PRIORITY, queue_list
from benchmarks import record
from benchmarks.pool.calls import Calls
from benchmarks.pool.plan import KEYS, NAMESPACE, QUEUE, REQUEST, TIMED, Plan
from benchmarks.pool.redis_load import Load, Snapshot, script_names
from benchmarks.pool.worker import Log, SimulatedWorker, settings_app
from tests.service.conftest import wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this module's own: queues have no namespace."""
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    """A connection to this module's Redis, which is empty."""
    with Redis.from_url(url) as connection:
        connection.flushall()
        yield connection


def plan(url: str, pace: float = 100.0) -> Plan:
    return Plan(
        url, first=0, workers=1, slots=4, steps=5, pace=pace, checkpoint_every=2,
        checkpoint_bytes=1000, lease_s=2.0,
    )  # fmt: skip


@contextmanager
def working(given: Plan) -> Iterator[Log]:
    """One simulated worker, with threads instead of greenlets."""
    log = Log()
    worker = SimulatedWorker(given, 0, settings_app(given.url), log)
    worker.start()
    try:
        yield log
    finally:
        worker.close()


def test_a_simulated_worker_does_what_a_real_one_does(redis: Redis, url: str) -> None:
    """Tasks succeed with all their events; Celery's result is written, the message acknowledged."""
    with working(plan(url)) as log, GenerationClient(url, NAMESPACE) as client:
        handles = client.submit_many([REQUEST] * 6)
        for handle in handles:
            kinds = [event.type for event in handle.events(timeout=10)]
            assert kinds[:2] == ["queued", "started"]
            assert kinds[-2:] == ["uploading", "succeeded"]
            assert set(kinds[2:-2]) == {"progress"}
        ids = [each.task_id for each in handles]
        wait_until(lambda: redis.hlen(UNACKED) == 0)
    stored = [json.loads(redis.get(f"celery-task-meta-{each}") or "{}") for each in ids]
    assert {each["status"] for each in stored} == {"SUCCESS"}
    assert redis.zcard(KEYS.open) == 0
    assert len(log.ended_s) == len(ids)
    assert log.errors == []


def test_claims_and_cancels_are_timed(redis: Redis, url: str) -> None:
    """A pool's log has when a worker claims a timed id, and when it knows of its cancel."""
    timed = f"{TIMED}{uuid.uuid4()}"
    with working(plan(url, pace=0.1)) as log, GenerationClient(url, NAMESPACE) as client:
        sent_s = time.monotonic()
        handle = client.submit(REQUEST, timed)
        next(each for each in handle.events(timeout=10) if each.type == "started")
        cancelled_s = time.monotonic()
        handle.cancel()
        wait_until(lambda: timed in log.cancelled_s)
    assert sent_s < log.claimed_s[timed] < cancelled_s + 1
    assert cancelled_s < log.cancelled_s[timed]
    assert log.errors == []


def test_a_message_alone_is_taken(redis: Redis, url: str) -> None:
    """A worker takes a message without a record or a wake-up, as plain Celery sends it."""
    timed = f"{TIMED}{uuid.uuid4()}"
    with working(plan(url)) as log:
        redis.lpush(
            queue_list(QUEUE, DEFAULT_PRIORITY),
            task_message(timed, json.dumps(REQUEST), QUEUE, DEFAULT_PRIORITY),
        )
        wait_until(lambda: bool(log.ended_s))
    assert timed in log.claimed_s
    assert log.errors == []


def test_costs_are_of_calls_that_succeed(redis: Redis, url: str) -> None:
    """The calls made one kind after the other leave every task closed, its message acknowledged."""
    for name, make in Calls(plan(url)).kinds():
        before = Snapshot.of(redis)
        assert make() == 4 * 12, name
        assert Load(before, Snapshot.of(redis)).calls >= 4 * 12, name
    assert redis.zcard(KEYS.open) == redis.hlen(UNACKED) == 0
    assert len(redis.keys(KEYS.events("*"))) == 4 * 12


def test_every_script_has_a_name() -> None:
    """The names of the daemon's scripts are known, for the list of the longest commands."""
    found = set(script_names().values())
    assert {"claim", "take", "wake", "finish", "submit"} <= found


def pool(out: Path, *options: str) -> None:
    command = [
        sys.executable, "-m", "benchmarks", "pool", "--slots", "2", "--steps", "4",
        "--checkpoint-kb", "1", "--out", str(out), *options,
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "columns"),
    [
        ((), ("pictures_a_second", "claim_ms_p50", "cancel_ms_p50", "redis_us_a_picture")),
        (("--idle",), ("commands_a_second_a_worker", "client_ms_p50", "lpush_ms_p50")),
    ],
    ids=["busy", "idle"],
)
def test_each_mode_measures(
    tmp_path: Path, mode: tuple[str, ...], columns: tuple[str, ...]
) -> None:
    """Each mode measures both numbers of workers without an error, and saves rows and plots."""
    pool(tmp_path, "--workers", "2", "4", "--seconds", "4", "--settle", "4", "--pace", "5", *mode)
    name = "-".join(("pool", *(each.strip("-") for each in mode)))
    result = record.load(tmp_path / f"{name}.json")
    assert [row["workers"] for row in result.rows] == [2, 4]
    for row in result.rows:
        assert row["errors"] == 0
        for column in ("commands_a_second", "redis_core_share", "ping_ms_p99", *columns):
            value = row[column]
            assert isinstance(value, float | int), column
            assert value > 0, column
    commands = record.load(tmp_path / f"{name}-commands.json")
    assert "evalsha" in {row["command"] for row in commands.rows}
    for each in (name, f"{name}-commands"):
        assert (tmp_path / f"{each}.png").stat().st_size > 0


@pytest.mark.slow
def test_costs_of_two_checkouts(tmp_path: Path) -> None:
    """The table of costs has a row for each kind of call, with its cost now and before."""
    pool(tmp_path, "--before", str(ROOT))
    rows = {row["call"]: row for row in record.load(tmp_path / "pool-costs.json").rows}
    assert rows["claim"]["commands"] == rows["claim"]["commands_before"]
    for row in rows.values():
        assert isinstance(row["us"], float | int)
        assert row["us"] > 0, row
