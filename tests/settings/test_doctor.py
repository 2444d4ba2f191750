"""What `doctor` reports of Redis, S3 and clocks that are broken on purpose."""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import botocore.auth
import pytest
from pydantic import SecretStr
from redis import Redis

from tests.settings.findings import the_one
from worker import embedded, s3_client
from worker.doctor import servers
from worker.doctor.checks import run_checks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.settings import Settings


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis of the test's own, to be misconfigured."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        Redis.from_url(url, protocol=2) as redis,
    ):
        yield redis


@pytest.fixture
def mine(settings: Settings, own_redis: Redis) -> Settings:
    """Settings with that Redis."""
    port = own_redis.connection_pool.connection_kwargs["port"]
    url = SecretStr(f"redis://{embedded.LOOPBACK}:{port}/0")
    return settings.model_copy(update={"broker_url": url})


def test_all_is_ok_with_a_correct_setup(mine: Settings) -> None:
    """On a machine that is set up as documented every finding is ok."""
    findings = list(run_checks(mine))
    assert [each for each in findings if not each.ok] == []
    assert {"redis broker clock", "s3 clock", "redis broker database"} <= {
        each.what for each in findings
    }


@pytest.mark.parametrize(
    ("setting", "value"), [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")]
)
def test_a_redis_that_may_lose_data_is_reported(
    mine: Settings, own_redis: Redis, setting: str, value: str
) -> None:
    """A setting by which Redis may lose data is reported with its value and its fix."""
    own_redis.config_set(setting, value)
    found = the_one(servers.check_redis(mine), f"redis broker {setting}")
    assert (found.ok, found.found) == (False, value)
    assert f"set {setting}" in found.fix


def test_a_redis_that_is_nearly_full_is_reported(mine: Settings, own_redis: Redis) -> None:
    """A Redis above 90 % of `maxmemory` is reported; one without a limit is never full."""
    for number in range(512):  # in pieces, or Redis's buffers for them count too
        own_redis.set(f"ballast:{number}", bytes(2**16))
    used = own_redis.info("memory")["used_memory"]
    for most, ok in ((used * 2, True), (int(used * 1.05), False), (0, True)):
        own_redis.config_set("maxmemory", most)
        assert the_one(servers.check_redis(mine), "redis broker memory").ok is ok


@pytest.mark.parametrize(("off_s", "ok"), [(30, True), (-30, True), (61.5, False), (-62, False)])
def test_a_clock_that_is_off_is_reported(
    mine: Settings, monkeypatch: pytest.MonkeyPatch, off_s: float, ok: bool
) -> None:
    """A clock more than a minute off that of Redis or S3 is reported, in either direction."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - off_s)
    redis_clock = the_one(servers.check_redis(mine), "redis broker clock")
    for found in (redis_clock, the_one(servers.check_s3(mine), "s3 clock")):
        assert found.ok is ok
        assert ("ahead of" if off_s > 0 else "behind") in found.found
        assert "NTP" in found.fix


def test_a_refused_signature_is_blamed_on_the_clock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature that S3 refuses for its time is blamed on the clock, not on the credentials."""
    real = botocore.auth.get_current_datetime
    late = timedelta(minutes=20)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: real() - late)
    (found,) = servers.check_s3(settings)
    assert not found.ok
    assert "NTP" in found.fix


def test_a_database_with_foreign_keys_is_reported(mine: Settings, own_redis: Redis) -> None:
    """Foreign keys in the database are reported by kind and number, without their names."""
    for name in (
        f"{mine.namespace}:open", f"{mine.namespace}:{{a}}:task", "generate.default",
        "generate.default\x06\x169", "sag.unacked_index", "celery-task-meta-odd",
        "_kombu.binding.generate.default", "_kombu.binding_permanent.generate.default",
        "_kombu.binding_deadlines", "_kombu.binding.celery.pidbox", "x.reply.celery.pidbox",
    ):  # fmt: skip
        own_redis.set(name, "")
    assert "none of 11 keys" in the_one(servers.check_redis(mine), "redis broker database").found
    for name in ("session:hunter2", "session:hunter3", "user81", "celery", "\x1b[31m"):
        own_redis.set(name, "")
    found = the_one(servers.check_redis(mine), "redis broker database")
    assert not found.ok
    assert "5 of 16 keys" in found.found
    assert "session:* (2)" in found.found
    assert "hunter" not in found.found
    assert "\x1b" not in found.found
    assert "database of its own" in found.fix


def test_a_large_database_is_scanned_in_part(
    mine: Settings, own_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large database is scanned by a bounded number of SCAN calls."""
    monkeypatch.setattr(servers, "SCANS", 2)
    monkeypatch.setattr(servers, "KEYS_PER_SCAN", 100)
    own_redis.mset({f"x:{number}": "" for number in range(2000)})
    calls = own_redis.info("commandstats")
    found = the_one(servers.check_redis(mine), "redis broker database")
    scans = own_redis.info("commandstats")["cmdstat_scan"]["calls"]
    assert (found.ok, scans - calls.get("cmdstat_scan", {}).get("calls", 0)) == (False, 2)


def test_silent_servers_cost_seconds(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that accepts and never answers is reported, for Redis and S3; the rest is checked."""
    monkeypatch.setattr(servers, "REDIS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind((embedded.LOOPBACK, 0))
        silent.listen()
        there = f"{embedded.LOOPBACK}:{silent.getsockname()[1]}"
        url = SecretStr(f"redis://{there}/0")
        dead = {"broker_url": url, "events_url": url, "s3_endpoint_url": f"http://{there}"}
        started_s = time.monotonic()
        findings = list(run_checks(settings.model_copy(update=dead)))
        assert time.monotonic() - started_s < 20
    assert {each.what for each in findings if not each.ok} == {"redis broker", "redis events", "s3"}
    assert {"device", "model default"} <= {each.what for each in findings}
