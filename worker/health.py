"""Is this worker able to take a task? And what is missing on this machine, with its mend?"""

from __future__ import annotations

import importlib.util
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from worker import gpu
from worker.errors import StorageUnavailable
from worker.status import connect
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from redis import Redis

    from worker.settings import Settings

#: Time for the workers of this machine to answer, in seconds.
PING_S = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `mend` says what to do when it is not well."""

    what: str
    ok: bool
    found: str
    mend: str = ""


def answering(app: Celery) -> list[str]:
    """Node names of this host's workers whose consumers answer through the broker."""
    host = socket.gethostname()
    names = (name for reply in app.control.ping(timeout=PING_S) for name in reply)
    return sorted(name for name in names if name.partition("@")[2] == host)


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at Redis, S3, the device and the models."""
    yield from _redis(settings)
    yield _s3(settings)
    yield _device(settings)
    yield from _models(settings)


def _redis(settings: Settings) -> Iterator[Finding]:
    for what, url in (("broker", settings.broker_url), ("events", settings.events)):
        redis = connect(url.get_secret_value())
        try:
            info = redis.info("server")
            yield Finding(f"redis {what}", ok=True, found=f"version {info['redis_version']}")
            yield _config(redis, what, "appendonly", "yes", "set appendonly yes")
            mend = "set maxmemory-policy noeviction"
            yield _config(redis, what, "maxmemory-policy", "noeviction", mend)
        except RedisError as error:
            name = f"SAG_{'BROKER' if what == 'broker' else 'EVENTS'}_URL"
            yield Finding(f"redis {what}", ok=False, found=str(error), mend=f"check {name}")


def _config(redis: Redis, what: str, name: str, want: str, mend: str) -> Finding:
    try:
        value = str(redis.config_get(name).get(name, "hidden"))
    except RedisError:
        return Finding(f"redis {what} {name}", ok=True, found="not readable, so not checked")
    why = "; else queued tasks can vanish" if value != want else ""
    return Finding(f"redis {what} {name}", ok=value == want, found=value, mend=mend + why)


def _s3(settings: Settings) -> Finding:
    where = f"{settings.s3_endpoint_url or 'AWS'}, bucket {settings.s3_bucket}"
    if importlib.util.find_spec("boto3") is None:
        return _extra("s3", "boto3")
    try:
        quick = settings.model_copy(update={"s3_retry_s": 0.0})
        Storage(quick).check(socket.gethostname())
    except StorageUnavailable as error:
        mend = "check SAG_S3_ENDPOINT_URL, SAG_S3_BUCKET and the AWS credentials"
        return Finding("s3", ok=False, found=error.message, mend=mend)
    return Finding("s3", ok=True, found=f"{where}: wrote and removed an object")


def _device(settings: Settings) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return _extra("device", "torch")
    device = gpu.resolve(settings.device)
    gpus = gpu.list_gpus()
    if device == "cpu":
        found = "the CPU; offload is not used"
        return Finding("device", ok=settings.device != "cuda", found=found)
    listed = ", ".join(f"{each.name} with {each.memory_mib} MiB" for each in gpus)
    mend = "install the driver so that nvidia-smi lists the GPU, or set SAG_DEVICE=cpu"
    return Finding(
        "device", ok=bool(gpus), found=f"{device}: {listed or 'no GPU found'}", mend=mend
    )


def _models(settings: Settings) -> Iterator[Finding]:
    for alias, spec in settings.models.items():
        folder = Path(spec.path)
        if folder.is_dir():
            ok = (folder / "model_index.json").is_file()
            mend = "point SAG_MODELS at a folder in diffusers' layout (with model_index.json)"
            yield Finding(f"model {alias}", ok=ok, found=str(folder), mend=mend)
        else:
            free_gib = shutil.disk_usage(Path.home()).free / 2**30
            found = f"{spec.path} from the hub or its cache; {free_gib:.0f} GiB free"
            yield Finding(f"model {alias}", ok="/" in spec.path.strip("/."), found=found)


def _extra(what: str, package: str) -> Finding:
    mend = 'install the worker extra: pip install "sag-worker[worker]"'
    return Finding(what, ok=False, found=f"{package} is not installed", mend=mend)
