"""Checks of Redis and S3: whether they answer, keep data and agree on the time."""

from __future__ import annotations

import importlib.util
import re
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, RedisError

from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.cluster import CLUSTER, is_cluster_error
from api_contracts.redis_io.connection import connect_impatiently
from worker.broker.held_messages import UNACKED
from worker.doctor.finding import Finding, missing_extra
from worker.doctor.replication import check_replication
from worker.errors import StorageUnavailableError
from worker.s3_client import STORE_IS_FULL
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis import Redis

    from worker.config.settings import Settings

#: Longest wait for one answer of Redis, in seconds; a call is made twice.
REDIS_TIMEOUT_S = 3.0
#: Largest difference between two clocks, in seconds. Deadlines and leases use Redis's clock, the
#: life of a presigned URL this machine's, and S3 refuses signatures that are 15 minutes off. NTP
#: keeps clocks far closer.
MAX_CLOCK_OFFSET_S = 60.0
#: Share of `maxmemory` above which Redis counts as full; at 1 it refuses new tasks.
FULL_SHARE = 0.9
#: Calls of SCAN, and keys that each visits: a part of a larger database is enough.
SCANS, KEYS_PER_SCAN = 20, 1000
#: Keys of Celery and this project without a namespace: queues, held messages, results, bindings.
_OWN_KEYS = re.compile(
    r"generate\.|_kombu\.binding(_permanent)?\.generate\.|_kombu\.binding_deadlines\Z"
    rf"|{re.escape(UNACKED)}|sag\.(ready|wake)\.|celery-task-meta-|.*celery\.pidbox|.*celeryev"
)
_S3_FIX = "check SAG_S3_ENDPOINT_URL, SAG_S3_BUCKET and the AWS credentials"
_S3_TLS_FIX = "name the file of the store's authority in AWS_CA_BUNDLE, or in SSL_CERT_FILE"
_CLOCK_FIX = "set both clocks by NTP; else deadlines, presigned URLs and signatures for S3 go wrong"


def check_redis(settings: Settings) -> Iterator[Finding]:
    """Findings on each Redis: version, persistence, replicas, clock; the broker's: others' keys."""
    for name, url in settings.redis_urls.items():
        what = name.split("_")[1].lower()
        try:
            with connect_impatiently(url.get_secret_value(), REDIS_TIMEOUT_S) as server:
                info = server.info()
                version = info.get("redis_version", "unknown")
                yield Finding(f"redis {what}", ok=True, found=f"version {version}")
                yield from _check_persistence(what, info)
                address = RedisAddress.parse(url.get_secret_value())
                yield from check_replication(what, info, by_sentinel=address.sentinels is not None)
                seconds, microseconds = server.time()
                yield _check_clock(f"redis {what} clock", seconds + microseconds / 1e6)
                if what == "broker":
                    yield _check_other_keys(server, settings.namespace)
        except RedisError as error:
            cluster = is_cluster_error(error)
            fix = CLUSTER if cluster else f"check {name}"
            yield Finding(f"redis {what}", ok=False, found=str(error), fix=fix)


def _check_persistence(what: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that Redis keeps its data and has memory left."""
    logged = {0: "no", 1: "yes"}.get(info.get("aof_enabled", -1))
    policy = info.get("maxmemory_policy")
    for name, want, value in (
        ("appendonly", "yes", logged), ("maxmemory-policy", "noeviction", policy),
    ):  # fmt: skip
        fix = f"set {name} {want}; else queued tasks can be lost"
        found = value or "not reported, so not checked"
        yield Finding(f"redis {what} {name}", ok=value in (want, None), found=found, fix=fix)
    used, most = info.get("used_memory", 0), info.get("maxmemory", 0)
    of = f" of {most / 2**20:.0f}" if most else ""
    found = f"{used / 2**20:.0f}{of} MiB used"
    fix = "raise maxmemory: when it is reached Redis refuses tasks and events"
    yield Finding(
        f"redis {what} memory", ok=not most or used < FULL_SHARE * most, found=found, fix=fix
    )


def _check_clock(what: str, server_time_s: float) -> Finding:
    offset_s = server_time_s - time.time()
    found = f"{abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} this machine's"
    return Finding(what, ok=abs(offset_s) <= MAX_CLOCK_OFFSET_S, found=found, fix=_CLOCK_FIX)


def _check_other_keys(server: Redis, namespace: str) -> Finding:
    """Check that no other application keeps keys in the broker's database."""
    what = "redis broker database"
    try:
        keys = _keys(server)
    except NoPermissionError:
        return Finding(what, ok=True, found="this user may not scan keys, so not checked")
    others = [key for key in keys if not (key.startswith(f"{namespace}:") or _OWN_KEYS.match(key))]
    if not others:
        return Finding(
            what, ok=True, found=f"its own: none of {len(keys)} keys is another application's"
        )
    most = Counter(map(_family, sorted(others))).most_common(4)
    named = ", ".join(f"{family} ({count})" for family, count in most)
    found = f"shared: {len(others)} of {len(keys)} keys are other applications', such as {named}"
    fix = (
        "give the service a database of its own (the number in SAG_BROKER_URL), or better a Redis:"
        " FLUSHDB, full memory and control messages of other Celery workers affect all who share"
        " one"
    )
    return Finding(what, ok=False, found=found, fix=fix)


def _keys(server: Redis) -> list[str]:
    """Return the keys of the database, of a large one about `SCANS * KEYS_PER_SCAN`."""
    keys: set[Any] = set()
    cursor = 0
    for _ in range(SCANS):
        cursor, some = server.scan(cursor, count=KEYS_PER_SCAN)
        keys.update(some)
        if not cursor:
            break
    return [str(key, errors="replace") for key in keys]


def _family(key: str) -> str:
    """Return the prefix of a key up to its first id or digit; the rest may be a secret."""
    first = re.split(r"(?<=[:{])|\d", key, maxsplit=1)[0][:40]
    return ascii(first if first == key else f"{first}*")[1:-1]


def _s3_fix(settings: Settings, message: str) -> str:
    if "TimeTooSkewed" in message:
        return _CLOCK_FIX
    if STORE_IS_FULL in message:
        return STORE_IS_FULL
    if "CERTIFICATE_VERIFY_FAILED" in message:
        return _S3_TLS_FIX
    if lacking := _lacking(settings):
        return f"the store lacks what these settings turn off: {', '.join(lacking)}"
    return _S3_FIX


def _lacking(settings: Settings) -> list[str]:
    """Settings that turn off what the store lacks; empty when a write fails without them, too."""
    features = "s3_conditional_writes", "s3_checksums"
    without = settings.model_copy(update=dict.fromkeys(features, False))
    if not _can_write(without):
        return []
    return [
        f"SAG_{name.upper()}=false"
        for name in features
        if not _can_write(without.model_copy(update={name: True}))
    ]


def _can_write(settings: Settings) -> bool:
    try:
        Storage(settings).check(socket.gethostname())
    except StorageUnavailableError:
        return False
    return True


def check_s3(settings: Settings) -> Iterator[Finding]:
    """Write and remove an object, and compare the clock of the answer."""
    if importlib.util.find_spec("boto3") is None:
        yield missing_extra("s3", "boto3")
        return
    try:
        quick = settings.model_copy(update={"s3_retry_s": 0.0})
        storage = Storage(quick)
        server_time_s = storage.check(socket.gethostname())
    except StorageUnavailableError as error:
        yield Finding("s3", ok=False, found=error.message, fix=_s3_fix(quick, error.message))
        return
    where = f"{storage.endpoint}, bucket {settings.s3_bucket}"
    yield Finding("s3", ok=True, found=f"{where}: wrote and removed an object")
    if server_time_s is not None:
        yield _check_clock("s3 clock", server_time_s)
