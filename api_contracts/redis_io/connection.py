"""Connections to Redis: a timeout for every call, certificates verified on `rediss://`."""

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

#: Exceptions of redis-py when Redis can't be reached.
REDIS_UNREACHABLE = (RedisConnectionError, RedisTimeoutError)
#: Temporary errors of Redis: out of memory, a replica, a lost primary, a failed save. redis-py has
#: a class for some; an error raised inside a script has only the word in its text.
_PASSING = (OutOfMemoryError, ReadOnlyError, MasterDownError, ClusterDownError)
_PASSING_WORDS = ("OOM", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "MISCONF", "BUSY", "NOREPLICAS")
#: Timeouts of connecting and of one answer, in seconds.
CONNECT_S, ANSWER_S = 5, 10
#: Timeout of each of two attempts to read the queues' lengths, in seconds.
COUNT_S = 1.0
#: Options of every connection.
OPTIONS: dict[str, Any] = {
    "socket_timeout": ANSWER_S,
    "socket_connect_timeout": CONNECT_S,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "protocol": 2,
}


def connect(url: str) -> Redis:
    """A client whose calls fail within seconds without Redis; raises ValueError for a bad URL."""
    return _client(url, OPTIONS)


def connect_impatiently(url: str, answer_s: float) -> Redis:
    """A client whose calls time out after `answer_s`, with one retry."""
    limits = {"socket_timeout": answer_s, "socket_connect_timeout": answer_s}
    return _client(url, {**OPTIONS, **limits, "retry": Retry(NoBackoff(), 1)})


def _client(url: str, options: dict[str, Any]) -> Redis:
    return Redis.from_url(checked_url(url), **options)


def checked_url(url: str) -> str:
    """The URL itself; raises ValueError for a bad one."""
    try:
        parse_url(url)
    except ValueError:
        # Its own message repeats what is where the port should be: that may be a password.
        message = "is no Redis URL; in user and password write / as %2F, @ as %40, : as %3A"
        raise ValueError(message) from None
    return url


def celery_tls(setting: str, url: str) -> dict[str, dict[str, ssl.VerifyMode]]:
    """Celery's `setting` that makes it verify a server's certificate; by default it does not.

    `setting` is `broker_use_ssl` or `redis_backend_use_ssl`. Empty unless the URL is `rediss://`.
    """
    return {setting: {"ssl_cert_reqs": ssl.CERT_REQUIRED}} if url.startswith("rediss://") else {}


def is_unavailable(error: BaseException) -> bool:
    """Whether Redis can't be reached, or can't write now; a later call may succeed."""
    if isinstance(error, (*REDIS_UNREACHABLE, *_PASSING)):
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in _PASSING_WORDS)


def as_service_unavailable(error: RedisError) -> ServiceUnavailable | None:
    """The caller's error when Redis is unavailable or refuses this user; None for any other."""
    if is_unavailable(error):
        return ServiceUnavailable(f"Redis does not answer: {error}")
    if isinstance(error, NoPermissionError):
        return ServiceUnavailable(f"Redis refuses this user: {error}")
    return None
