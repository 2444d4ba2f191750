"""What `doctor` finds at Redis and S3: do they answer, keep what they get, and tell our time?"""

from __future__ import annotations

import importlib.util
import re
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, RedisError

from api_contracts.redis_io.connection import connect_impatiently
from worker.broker.held_messages import UNACKED
from worker.doctor.finding import Finding, no_extra
from worker.errors import StorageUnavailableError
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis import Redis

    from worker.config.settings import Settings

#: Longest wait for one answer of Redis, in seconds; it is asked twice.
ANSWER_S = 3.0
#: Most seconds between two clocks. Deadlines and leases go by Redis's, the life of a presigned URL
#: by this machine's, and S3 refuses what is signed 15 minutes off; NTP keeps all of it far below.
CLOCK_S = 60.0
#: Share of `maxmemory` that is nearly all of it: beyond, Redis refuses new tasks.
FULL = 0.9
#: Calls of SCAN, and keys that each looks at: of a larger database a part is enough.
SCANS, SCANNED = 20, 1000
#: Keys of Celery and of ours that have no namespace: queues, held messages, results, who listens.
_OURS = re.compile(
    r"generate\.|_kombu\.binding(_permanent)?\.generate\.|_kombu\.binding_deadlines\Z"
    rf"|{re.escape(UNACKED)}|celery-task-meta-|.*celery\.pidbox|.*celeryev"
)
_S3_FIX = "check SAG_S3_ENDPOINT_URL, SAG_S3_BUCKET and the AWS credentials"
_CLOCK_FIX = "set both clocks by NTP; else deadlines, presigned URLs and signatures for S3 go wrong"


def redis(settings: Settings) -> Iterator[Finding]:
    """Each Redis of the settings, and who else is in the broker's database."""
    servers = {"broker": settings.broker_url}
    if settings.events_url is not None:
        servers["events"] = settings.events_url
    if settings.result_url is not None:
        servers["result"] = settings.result_url
    for what, url in servers.items():
        try:
            with connect_impatiently(url.get_secret_value(), ANSWER_S) as server:
                info = server.info()
                version = info.get("redis_version", "unknown")
                yield Finding(f"redis {what}", ok=True, found=f"version {version}")
                yield from _kept(what, info)
                seconds, microseconds = server.time()
                yield _clock(f"redis {what} clock", seconds + microseconds / 1e6)
                if what == "broker":
                    yield _company(server, settings.namespace)
        except RedisError as error:
            fix = f"check SAG_{what.upper()}_URL"
            yield Finding(f"redis {what}", ok=False, found=str(error), fix=fix)


def _kept(what: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether Redis keeps what it is given, and has room for more."""
    logged = {0: "no", 1: "yes"}.get(info.get("aof_enabled", -1))
    policy = info.get("maxmemory_policy")
    for name, want, value in (
        ("appendonly", "yes", logged), ("maxmemory-policy", "noeviction", policy),
    ):  # fmt: skip
        fix = f"set {name} {want}; else queued tasks can vanish"
        found = value or "not told, so not checked"
        yield Finding(f"redis {what} {name}", ok=value in (want, None), found=found, fix=fix)
    used, most = info.get("used_memory", 0), info.get("maxmemory", 0)
    of = f" of {most / 2**20:.0f}" if most else ""
    found = f"{used / 2**20:.0f}{of} MiB used"
    fix = "raise maxmemory: when it is reached Redis refuses tasks and events"
    yield Finding(f"redis {what} memory", ok=not most or used < FULL * most, found=found, fix=fix)


def _clock(what: str, theirs_s: float) -> Finding:
    off_s = theirs_s - time.time()
    found = f"{abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} this machine's"
    return Finding(what, ok=abs(off_s) <= CLOCK_S, found=found, fix=_CLOCK_FIX)


def _company(server: Redis, namespace: str) -> Finding:
    """Whether anybody else keeps something in the broker's database."""
    what = "redis broker database"
    try:
        keys = _keys(server)
    except NoPermissionError:
        return Finding(what, ok=True, found="this user may not list keys, so not checked")
    others = [key for key in keys if not (key.startswith(f"{namespace}:") or _OURS.match(key))]
    if not others:
        return Finding(what, ok=True, found=f"its own: none of {len(keys)} keys is another's")
    most = Counter(map(_family, sorted(others))).most_common(4)
    named = ", ".join(f"{family} ({count})" for family, count in most)
    found = f"shared: {len(others)} of {len(keys)} keys are others', such as {named}"
    fix = (
        "a database of its own (the number in SAG_BROKER_URL), or better a Redis: FLUSHDB, a full"
        " memory and control messages of other Celery workers reach all who share one"
    )
    return Finding(what, ok=False, found=found, fix=fix)


def _keys(server: Redis) -> list[str]:
    """The keys of the database, at least the first `SCANS` times about `SCANNED`."""
    keys: set[Any] = set()
    cursor = 0
    for _ in range(SCANS):
        cursor, some = server.scan(cursor, count=SCANNED)
        keys.update(some)
        if not cursor:
            break
    return [str(key, errors="replace") for key in keys]


def _family(key: str) -> str:
    """What a key has in common with others of its kind; what follows may be a secret."""
    first = re.split(r"(?<=[:{])|\d", key, maxsplit=1)[0][:40]
    return ascii(first if first == key else f"{first}*")[1:-1]


def s3(settings: Settings) -> Iterator[Finding]:
    """One object is written and removed; its answer tells the time, too."""
    where = f"{settings.s3_endpoint_url or 'AWS'}, bucket {settings.s3_bucket}"
    if importlib.util.find_spec("boto3") is None:
        yield no_extra("s3", "boto3")
        return
    try:
        quick = settings.model_copy(update={"s3_retry_s": 0.0})
        theirs_s = Storage(quick).check(socket.gethostname())
    except StorageUnavailableError as error:
        fix = _CLOCK_FIX if "TimeTooSkewed" in error.message else _S3_FIX
        yield Finding("s3", ok=False, found=error.message, fix=fix)
        return
    yield Finding("s3", ok=True, found=f"{where}: wrote and removed an object")
    if theirs_s is not None:
        yield _clock("s3 clock", theirs_s)
