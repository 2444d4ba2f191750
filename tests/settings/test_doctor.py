"""What `doctor` reports of Redis, S3, clocks and models that are broken on purpose."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING

import botocore.auth
import pytest
from huggingface_hub import constants
from pydantic import SecretStr
from redis import Redis

from worker import embedded, s3_client
from worker.config.models import SHIPPED_MODEL, Adapter, Lora, ModelSpec, TextualInversion
from worker.devices import Gpu
from worker.doctor import hub, servers
from worker.doctor.checks import check_models, run_checks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.config.settings import Settings
    from worker.doctor.finding import Finding


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


def the_one(findings: Iterator[Finding], what: str) -> Finding:
    (found,) = [each for each in findings if each.what == what]
    return found


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


def test_a_missing_model_file_is_reported(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing folder, part, LoRA or textual inversion is named with its model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec = ModelSpec(
        path=str(SHIPPED_MODEL),
        lora=(Lora(path="/no/lora.safetensors"), Lora(path="some/hub-id")),
        adapters={"ink": Adapter(path="/no/ink.safetensors")},
        textual_inversion=(TextualInversion(path="/no/word", token="<w>"),),
    )
    paths = {"b": ModelSpec(path="/nowhere"), "c": ModelSpec(path="hub/models--a--b")}
    broken = settings.model_copy(update={"models": {"a": spec, **paths}})
    findings = [each for each in check_models(broken) if not each.ok]
    assert [(each.what, each.found.rpartition(": ")[2]) for each in findings] == [
        ("model a", "model_index.json names no safety_checker"),
        ("model a", "/no/lora.safetensors is not there"),
        ("model a hub", "some/hub-id is not whole in the cache, and HF_HUB_OFFLINE is set"),
        ("model a", "/no/ink.safetensors is not there"),
        ("model a", "/no/word is not there"),
        ("model b", "/nowhere is not there"),
        ("model c", "hub/models--a--b is not there"),
    ]
    assert all("SAG_MODELS" in each.fix for each in findings)


def test_what_a_family_lacks_is_reported(settings: Settings, tmp_path: Path) -> None:
    """Settings that the model's family does not have are named, as when it is loaded."""
    from tests.engine.small_models import save_pixels

    folder = str(save_pixels(tmp_path / "pixels"))
    spec = ModelSpec(path=folder, vae_tiling=True, lora=(Lora(path="/no/a"),))
    whole, *findings = models(settings, a=spec)
    assert whole.ok
    assert [each.found for each in findings] == [
        "is of pixels, which takes no lora",
        "is of pixels, which takes no vae_tiling",
        "/no/a is not there",
    ]


def models(settings: Settings, **specs: ModelSpec) -> list[Finding]:
    """The findings about these models, each without a safety checker."""
    given = {k: each.model_copy(update={"safety_checker": False}) for k, each in specs.items()}
    return list(check_models(settings.model_copy(update={"models": given})))


def single_file(folder: Path) -> str:
    """The bundled model as one file."""
    from tests.engine import original_layout

    whole = original_layout.tensors_of(SHIPPED_MODEL)
    return str(original_layout.save(whole, folder / "model.safetensors"))


def test_a_variant_of_a_folder_is_reported(settings: Settings, tmp_path: Path) -> None:
    """A folder of one variant is whole with the setting, and without it the setting is named."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    for file in list(folder.glob("*/*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    ok, bad = models(
        settings,
        a=ModelSpec(path=str(folder), variant="fp16"),
        b=ModelSpec(path=str(folder)),
    )
    assert (ok.ok, bad.ok) == (True, False)
    assert "that of variant fp16 is: set the model's variant" in bad.found


def test_a_single_file_is_inspected(settings: Settings, tmp_path: Path) -> None:
    """A checkpoint in one file is whole with its config, and what is wrong is named otherwise."""
    file = single_file(tmp_path)
    cut, pickle = tmp_path / "cut.safetensors", tmp_path / "model.ckpt"
    cut.write_bytes(b"cut")
    pickle.write_bytes(b"")
    found = models(
        settings,
        a=ModelSpec(path=file, config=str(SHIPPED_MODEL)),
        b=ModelSpec(path=file, config="/nowhere"),
        c=ModelSpec(path=str(cut), config=str(SHIPPED_MODEL)),
        d=ModelSpec(path=str(pickle)),
        e=ModelSpec(path="models/absent.safetensors"),
    )
    assert [each.ok for each in found] == [True, False, False, False, False]
    assert "it is whole" in found[0].found
    assert "config /nowhere is not there" in found[1].found
    assert "is not complete" in found[2].found
    assert "is a pickle" in found[3].found
    assert "is not there" in found[4].found
    assert all("SAG_MODELS" in each.fix for each in found)


def test_a_single_file_has_no_safety_checker(settings: Settings, tmp_path: Path) -> None:
    """A checkpoint in one file with a safety checker in the settings is reported."""
    spec = ModelSpec(path=single_file(tmp_path), config=str(SHIPPED_MODEL))
    (found,) = check_models(settings.model_copy(update={"models": {"a": spec}}))
    assert not found.ok
    assert "has no safety checker; set safety_checker to false" in found.found


def test_a_single_files_memory_is_compared(settings: Settings, tmp_path: Path) -> None:
    """The weights of a file need the memory of the folder's."""
    file = single_file(tmp_path)
    gpu = Gpu(index=0, gpu_uuid="a", name="small", memory_mib=1, free_mib=1)
    cuda = settings.model_copy(update={"device": "cuda:0"})
    specs = [
        ModelSpec(path=file, config=str(SHIPPED_MODEL), safety_checker=False),
        ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False),
    ]
    ours, theirs = (
        list(check_models(cuda.model_copy(update={"models": {"a": each}}), [gpu]))[-1]
        for each in specs
    )
    assert ours == theirs
    assert not ours.ok


def test_a_single_file_may_need_a_hub(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `config` the hub is asked for the configuration that belongs to the file's kind."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    file = single_file(tmp_path)
    weights, place, asked = models(settings, a=ModelSpec(path=file))
    assert (weights.ok, place.ok, asked.ok) == (True, True, False)
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in asked.found
    assert "or its config, to a folder" in asked.fix


REMOTE = ModelSpec(path="owner/name")


@pytest.mark.slow  # the hub's client takes a second to import
def test_a_hub_is_asked_for_what_is_not_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that never answers, and a forbidden one, are named with what to check."""
    monkeypatch.setattr(hub, "HUB_TIMEOUT_S", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server((embedded.LOOPBACK, 0)) as silent:
        monkeypatch.setattr(
            constants, "ENDPOINT", f"http://{embedded.LOOPBACK}:{silent.getsockname()[1]}"
        )
        found = hub.check_hub("model a hub", REMOTE, "owner/name")
    assert (found.ok, "HF_ENDPOINT" in found.fix) == (False, True)
    assert constants.ENDPOINT in found.found
    assert "imeout" in found.found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in hub.check_hub("model a hub", REMOTE, "owner/name").found


@pytest.fixture
def unreadable(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user may not read; root may, so it becomes another user."""
    import_module("huggingface_hub.hf_api")  # Python's own files may be for root alone
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
def test_a_model_that_cannot_be_read_is_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, unreadable: Path, addition: bool
) -> None:
    """A folder or LoRA without permission, or a name that is too long, does not end the checks."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/")
    lora = (Lora(path=str(unreadable)),) if addition else ()
    spec = ModelSpec(path="owner/name" if addition else str(unreadable), lora=lora)
    longer = ModelSpec(path=f"/{'x' * 300}")
    broken = settings.model_copy(update={"models": {"a": spec, "b": longer}})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = {each.what: each for each in check_models(broken) if not each.ok}
    found.pop("model a hub", None)
    assert list(found) == ["model a", "model b"]
    assert str(unreadable) in found["model a"].found
    assert all("SAG_MODELS" in each.fix for each in found.values())


def test_disk_space_is_that_of_the_hub_cache(tmp_path: Path) -> None:
    """The disk space is that of the hub's cache, also where that folder does not exist yet."""
    program = (
        "import importlib, os, sys\n"
        "from huggingface_hub import constants\n"
        "from worker.config.settings import Settings\n"
        "from worker.doctor.checks import check_models\n"
        "for variable, home in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    os.environ[variable] = home\n"
        "    importlib.reload(constants)\n"
        "    found, _ = check_models(Settings(models={'a': {'path': 'owner/name'}}))\n"
        "    assert found.ok and 'torch' not in sys.modules; print(found.found)\n"
    )
    caches = {"HOME": ".cache/huggingface/hub", "HF_HOME": "hub"}  # HF_HOME overrides HOME
    arguments, places = [], []
    for variable, cache in caches.items():
        home = tmp_path / variable
        (home / "full" / cache).mkdir(parents=True)
        arguments += [variable, str(home / "full"), variable, str(home / "not" / "yet")]
        places += [home / "full" / cache, home]
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=plain | {"HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line.rpartition(" GiB free at ")[2] for line in lines] == list(map(str, places))
