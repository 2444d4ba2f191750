"""What `doctor` finds at Redis, S3 and the clocks, each made unwell on purpose."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import botocore.auth
import pytest
from huggingface_hub import constants
from pydantic import SecretStr
from redis import Redis

from worker import embedded, storage
from worker.config.models import SHIPPED_MODEL, Lora, ModelSpec, TextualInversion
from worker.doctor import servers
from worker.doctor.checks import examine, models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.config.settings import Settings
    from worker.doctor.finding import Finding


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis of the test's own, to be set up badly."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        Redis.from_url(url, protocol=2) as redis,
    ):
        yield redis


@pytest.fixture
def mine(settings: Settings, own: Redis) -> Settings:
    """Settings over that Redis."""
    port = own.connection_pool.connection_kwargs["port"]
    url = SecretStr(f"redis://{embedded.LOOPBACK}:{port}/0")
    return settings.model_copy(update={"broker_url": url})


def only(findings: Iterator[Finding], what: str) -> Finding:
    (found,) = [each for each in findings if each.what == what]
    return found


def test_all_is_well_with_servers_as_they_should_be(mine: Settings) -> None:
    """Every finding of a machine that is set up as the documents say is well."""
    told = list(examine(mine))
    assert [each for each in told if not each.ok] == []
    assert {"redis broker clock", "s3 clock", "redis broker database"} <= {
        each.what for each in told
    }


@pytest.mark.parametrize(
    ("setting", "value"), [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")]
)
def test_a_redis_that_forgets_is_a_fault(
    mine: Settings, own: Redis, setting: str, value: str
) -> None:
    """With its value and the setting that mends it."""
    own.config_set(setting, value)
    found = only(servers.redis(mine), f"redis broker {setting}")
    assert (found.ok, found.found) == (False, value)
    assert f"set {setting}" in found.fix


def test_a_redis_that_is_nearly_full_is_a_fault(mine: Settings, own: Redis) -> None:
    """From 90 % of `maxmemory` on; without a limit it is never full."""
    for number in range(512):  # in pieces, or Redis's buffers for them count too
        own.set(f"ballast:{number}", bytes(2**16))
    used = own.info("memory")["used_memory"]
    for most, ok in ((used * 2, True), (int(used * 1.05), False), (0, True)):
        own.config_set("maxmemory", most)
        assert only(servers.redis(mine), "redis broker memory").ok is ok


@pytest.mark.parametrize(("off_s", "ok"), [(30, True), (-30, True), (61.5, False), (-62, False)])
def test_a_clock_that_is_off_is_a_fault(
    mine: Settings, monkeypatch: pytest.MonkeyPatch, off_s: float, ok: bool
) -> None:
    """More than a minute between this machine and Redis, or S3, on either side."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - off_s)
    for found in (
        only(servers.redis(mine), "redis broker clock"), only(servers.s3(mine), "s3 clock"),
    ):  # fmt: skip
        assert found.ok is ok
        assert ("ahead of" if off_s > 0 else "behind") in found.found
        assert "NTP" in found.fix


def test_a_signature_of_another_time_is_blamed_on_the_clock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 refuses what is signed 20 minutes off; the keys are not at fault."""
    real = botocore.auth.get_current_datetime
    late = timedelta(minutes=20)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: real() - late)
    (found,) = servers.s3(settings)
    assert not found.ok
    assert "NTP" in found.fix


def test_a_database_with_other_keys_is_a_fault(mine: Settings, own: Redis) -> None:
    """Told by kind and number, without what may be secret in a name; our own are not counted."""
    for name in (
        f"{mine.namespace}:open", f"{mine.namespace}:{{a}}:task", "generate.default",
        "generate.default\x06\x169", "sag.unacked_index", "celery-task-meta-odd",
        "_kombu.binding.generate.default", "_kombu.binding_permanent.generate.default",
        "_kombu.binding_deadlines", "_kombu.binding.celery.pidbox", "x.reply.celery.pidbox",
    ):  # fmt: skip
        own.set(name, "")
    assert "none of 11 keys" in only(servers.redis(mine), "redis broker database").found
    for name in ("session:hunter2", "session:hunter3", "user81", "celery", "\x1b[31m"):
        own.set(name, "")
    found = only(servers.redis(mine), "redis broker database")
    assert not found.ok
    assert "5 of 16 keys" in found.found
    assert "session:* (2)" in found.found
    assert "hunter" not in found.found
    assert "\x1b" not in found.found
    assert "database of its own" in found.fix


def test_a_large_database_is_looked_at_in_part(
    mine: Settings, own: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many keys there are, so many are asked for and no more."""
    monkeypatch.setattr(servers, "SCANS", 2)
    monkeypatch.setattr(servers, "SCANNED", 100)
    own.mset({f"x:{number}": "" for number in range(2000)})
    calls = own.info("commandstats")
    found = only(servers.redis(mine), "redis broker database")
    scans = own.info("commandstats")["cmdstat_scan"]["calls"]
    assert (found.ok, scans - calls.get("cmdstat_scan", {}).get("calls", 0)) == (False, 2)


def test_silent_servers_cost_seconds(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that accepts and says nothing is a fault, for Redis and S3; the rest is looked at."""
    monkeypatch.setattr(servers, "ANSWER_S", 0.2)
    monkeypatch.setattr(storage, "READ_TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind((embedded.LOOPBACK, 0))
        silent.listen()
        there = f"{embedded.LOOPBACK}:{silent.getsockname()[1]}"
        url = SecretStr(f"redis://{there}/0")
        dead = {"broker_url": url, "events_url": url, "s3_endpoint_url": f"http://{there}"}
        began_s = time.monotonic()
        told = list(examine(settings.model_copy(update=dead)))
        assert time.monotonic() - began_s < 20
    assert {each.what for each in told if not each.ok} == {"redis broker", "redis events", "s3"}
    assert {"device", "model default"} <= {each.what for each in told}


def test_a_model_that_lacks_a_file_is_a_fault(settings: Settings) -> None:
    """Its folder, its LoRA, its words: each that is not there is named with its model."""
    spec = ModelSpec(
        path=str(SHIPPED_MODEL),
        lora=(Lora(path="/no/lora.safetensors"), Lora(path="some/hub-id")),
        textual_inversion=(TextualInversion(path="/no/word", token="<w>"),),
    )
    broken = settings.model_copy(update={"models": {"a": spec, "b": ModelSpec(path="/nowhere")}})
    told = [each for each in models(broken) if not each.ok]
    assert [(each.what, each.found.rpartition(": ")[2]) for each in told] == [
        ("model a", "model_index.json names no safety_checker"),
        ("model a", "/no/lora.safetensors is not there"),
        ("model a", "/no/word is not there"),
        ("model b", "/nowhere is not there"),
    ]
    assert all("SAG_MODELS" in each.fix for each in told)


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user may not look into; root may, so becomes somebody else."""
    (tmp_path / "closed" / "model").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield tmp_path / "closed" / "model"
    if root:
        os.seteuid(0)
    (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize("addition", [False, True])
def test_a_model_that_cannot_be_looked_at_is_a_fault(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, nobody: Path, addition: bool
) -> None:
    """Its folder or its LoRA below one that is closed, or a name longer than any: told, no end."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/")
    lora = (Lora(path=str(nobody)),) if addition else ()
    spec = ModelSpec(path="owner/name" if addition else str(nobody), lora=lora)
    longer = ModelSpec(path=f"/{'x' * 300}")
    told = list(models(settings.model_copy(update={"models": {"a": spec, "b": longer}})))
    found = {each.what: each for each in told if not each.ok}
    assert list(found) == ["model a", "model b"]
    assert str(nobody) in found["model a"].found
    assert all("SAG_MODELS" in each.fix for each in found.values())


@pytest.mark.parametrize(
    ("variable", "below"), [("HOME", ".cache/huggingface/hub"), ("HF_HOME", "hub")]
)
@pytest.mark.parametrize("there", [True, False])
def test_room_for_the_hub_is_where_its_cache_is(
    tmp_path: Path, variable: str, below: str, there: bool
) -> None:
    """Also where that folder, or home itself, is still to be made; torch isn't loaded for it."""
    home = tmp_path / "not" / "yet"
    if there:
        (home / below).mkdir(parents=True)
    program = (
        "import sys; from worker.doctor.checks import models\n"
        "from worker.config.settings import Settings\n"
        "(found,) = models(Settings(models={'a': {'path': 'owner/name'}}))\n"
        "assert found.ok and 'torch' not in sys.modules; print(found.found)"
    )
    mine = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env={**mine, variable: str(home)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.endswith(f" GiB free at {home / below if there else tmp_path}\n")
