"""`health`: do this host's workers answer? `doctor`: what is missing here, and its fix."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from api_contracts.client import lists_of
from api_contracts.connection import CONNECT_S, celery_tls, connect
from api_contracts.errors import ServiceUnavailable
from api_contracts.names import PRIORITIES, TRANSPORT_OPTIONS
from api_contracts.records import reach
from worker import gpu
from worker.control import WELL
from worker.errors import StorageUnavailable
from worker.model_spec import is_hub_id
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from worker.settings import Settings

#: Time for the workers of this machine to answer, in seconds.
PING_S = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fix` says what to do when it is not well."""

    what: str
    ok: bool
    found: str
    fix: str = ""


def answering(settings: Settings) -> dict[str, str | None]:
    """This host's workers whose consumers answer through the broker, by node name.

    With each goes why it would claim no task now, None when it would.
    Raises `ServiceUnavailable` when Redis does not answer.
    """
    host = socket.gethostname()
    return {
        name: answer.get("refusal", answer.get("error"))
        for name, answer in everybody(settings).items()
        if name.partition("@")[2] == host
    }


def everybody(settings: Settings) -> dict[str, dict[str, Any]]:
    """All workers of the broker, by node name: `refusal`, `device`, `running`.

    Raises `ServiceUnavailable` when Redis does not answer.
    """
    url = settings.broker_url.get_secret_value()
    app = Celery("sag-health", broker=url, set_as_current=False, fixups=[])
    app.conf.update(
        broker_transport_options=dict(TRANSPORT_OPTIONS),
        broker_connection_timeout=CONNECT_S,
        **celery_tls("broker_use_ssl", url),
    )
    try:
        replies = app.control.broadcast(WELL, reply=True, timeout=PING_S)
    except (OperationalError, RedisError) as error:
        raise ServiceUnavailable(f"Redis does not answer: {error}") from error
    return {name: answer for reply in replies for name, answer in sorted(reply.items())}


def depths(settings: Settings) -> dict[str, dict[int, int]]:
    """How many messages wait, by model and priority; raises as `everybody`."""
    broker = connect(settings.broker_url.get_secret_value())
    pipeline = broker.pipeline(transaction=False)
    for key in lists_of(list(settings.models)):
        pipeline.llen(key)
    lengths = iter(reach(pipeline.execute))
    return {
        model: {each: count for each, count in zip(PRIORITIES, lengths, strict=False) if count}
        for model in settings.models
    }


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at Redis, S3, the device and the models."""
    yield from _redis(settings)
    yield _s3(settings)
    yield _device(settings)
    yield from _models(settings)


def _redis(settings: Settings) -> Iterator[Finding]:
    servers = {"broker": settings.broker_url}
    if settings.events_url is not None:
        servers["events"] = settings.events_url
    if settings.result_url is not None:
        servers["result"] = settings.result_url
    for what, url in servers.items():
        redis = connect(url.get_secret_value())
        try:
            info = redis.info("server")
            yield Finding(f"redis {what}", ok=True, found=f"version {info['redis_version']}")
            yield _config(redis, what, "appendonly", "yes", "set appendonly yes")
            fix = "set maxmemory-policy noeviction"
            yield _config(redis, what, "maxmemory-policy", "noeviction", fix)
        except RedisError as error:
            fix = f"check SAG_{what.upper()}_URL"
            yield Finding(f"redis {what}", ok=False, found=str(error), fix=fix)


def _config(redis: Redis, what: str, name: str, want: str, fix: str) -> Finding:
    try:
        value = str(redis.config_get(name).get(name, "hidden"))
    except RedisError:
        return Finding(f"redis {what} {name}", ok=True, found="not readable, so not checked")
    why = "; else queued tasks can vanish" if value != want else ""
    return Finding(f"redis {what} {name}", ok=value == want, found=value, fix=fix + why)


def _s3(settings: Settings) -> Finding:
    where = f"{settings.s3_endpoint_url or 'AWS'}, bucket {settings.s3_bucket}"
    if importlib.util.find_spec("boto3") is None:
        return _extra("s3", "boto3")
    try:
        quick = settings.model_copy(update={"s3_retry_s": 0.0})
        Storage(quick).check(socket.gethostname())
    except StorageUnavailable as error:
        fix = "check SAG_S3_ENDPOINT_URL, SAG_S3_BUCKET and the AWS credentials"
        return Finding("s3", ok=False, found=error.message, fix=fix)
    return Finding("s3", ok=True, found=f"{where}: wrote and removed an object")


def _device(settings: Settings) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return _extra("device", "torch")
    try:
        device, gpus = gpu.resolve(settings.device), gpu.list_gpus()
    except RuntimeError as error:
        return Finding("device", ok=False, found=str(error), fix="repair the driver")
    if device == "cpu":
        return Finding("device", ok=True, found="the CPU; offload is not used")
    listed = ", ".join(f"{each.name} with {each.memory_mib} MiB" for each in gpus) or "no GPU"
    if int(device.partition(":")[2]) >= len(gpus):
        fix = "name one that nvidia-smi lists, or set SAG_DEVICE=cpu"
        return Finding("device", ok=False, found=f"{device} of {listed}", fix=fix)
    import torch  # noqa: PLC0415  # only where a GPU is to be used

    fix = "install a torch that is built for CUDA, and a driver that is new enough for it"
    ok = torch.cuda.is_available()
    return Finding("device", ok=ok, found=f"{device}: {listed}; torch {torch.__version__}", fix=fix)


def _models(settings: Settings) -> Iterator[Finding]:
    for alias, spec in settings.models.items():
        folder, what = Path(spec.path), f"model {alias}"
        if folder.is_dir():
            ok = (folder / "model_index.json").is_file()
            fix = "point SAG_MODELS at a folder in diffusers' layout (with model_index.json)"
            yield Finding(what, ok=ok, found=str(folder), fix=fix)
        elif is_hub_id(spec.path):
            free_gib = shutil.disk_usage(Path.home()).free / 2**30
            found = f"{spec.path} from the hub or its cache; {free_gib:.0f} GiB free"
            yield Finding(what, ok=True, found=found)
        else:
            fix = "set its path in SAG_MODELS to a folder on this machine or a hub id (owner/name)"
            yield Finding(what, ok=False, found=f"{spec.path} is not there", fix=fix)


def _extra(what: str, package: str) -> Finding:
    fix = 'install the worker extra, from the checkout: pip install ".[worker]"'
    return Finding(what, ok=False, found=f"{package} is not installed", fix=fix)
