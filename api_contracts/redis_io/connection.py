"""How Redis is reached: time limits for every call, certificates verified on `rediss://`."""

from __future__ import annotations

import ssl
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from api_contracts.errors import ServiceUnavailable

#: What redis-py raises while Redis can't be reached.
REDIS_AWAY = (RedisConnectionError, RedisTimeoutError)
#: Redis's own refusals that pass: full, a replica, a lost primary, a failed save. For some redis-py
#: has a class; out of a script comes the word alone.
_PASSING = (OutOfMemoryError, ReadOnlyError, MasterDownError, ClusterDownError)
_PASSING_WORDS = ("OOM", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "BUSY", "NOREPLICAS")
CONNECT_S, ANSWER_S = 5, 10
#: For the broker to say how long its queues are, each of two times, in seconds.
COUNT_S = 1.0
#: For every connection of ours.
OPTIONS: dict[str, Any] = {
    "socket_timeout": ANSWER_S,
    "socket_connect_timeout": CONNECT_S,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "protocol": 2,
}


def connect(url: str) -> Redis:
    """A client whose calls end in seconds when Redis is away; raises ValueError for no URL."""
    return _client(url, OPTIONS)


def connect_impatiently(url: str, answer_s: float) -> Redis:
    """A client that waits at most `answer_s` for an answer, and asks once more at once."""
    limits = {"socket_timeout": answer_s, "socket_connect_timeout": answer_s}
    return _client(url, {**OPTIONS, **limits, "retry": Retry(NoBackoff(), 1)})


def _client(url: str, options: dict[str, Any]) -> Redis:
    return Redis.from_url(checked_url(url), **options)


def checked_url(url: str) -> str:
    """The URL itself; raises ValueError for what is none."""
    try:
        parse_url(url)
    except ValueError:
        # Its own message repeats what stands where the port should be: it may be a password.
        message = "is no Redis URL; in user and password write / as %2F, @ as %40, : as %3A"
        raise ValueError(message) from None
    return url


def celery_tls(setting: str, url: str) -> dict[str, dict[str, ssl.VerifyMode]]:
    """Celery's `setting` that has it verify the server of a `rediss://` URL; by itself it doesn't.

    `setting` is `broker_use_ssl` or `redis_backend_use_ssl`. Empty for other URLs.
    """
    return {setting: {"ssl_cert_reqs": ssl.CERT_REQUIRED}} if url.startswith("rediss://") else {}


def is_away(error: BaseException) -> bool:
    """Whether Redis can't be reached, or can't write just now; it may be well a moment later."""
    if isinstance(error, (*REDIS_AWAY, *_PASSING)):
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in _PASSING_WORDS)


def unavailable(error: RedisError) -> ServiceUnavailable | None:
    """What a caller is told when Redis is away or refuses this user; None for any other error."""
    if is_away(error):
        return ServiceUnavailable(f"Redis does not answer: {error}")
    if isinstance(error, NoPermissionError):
        return ServiceUnavailable(f"Redis refuses this user: {error}")
    return None
