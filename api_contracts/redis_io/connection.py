"""Connections to Redis: a timeout for every call, certificates verified on `rediss://`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.backoff import NoBackoff
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
from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.cluster import CLUSTER, is_cluster_error
from api_contracts.redis_io.pools import client_of

if TYPE_CHECKING:
    from redis import Redis

#: Exceptions of redis-py when Redis can't be reached.
REDIS_UNREACHABLE = (RedisConnectionError, RedisTimeoutError)
#: Temporary errors of Redis: out of memory, a replica, a lost primary, a failed save. redis-py has
#: a class for some; an error raised inside a script has only the word in its text.
_PASSING = (OutOfMemoryError, ReadOnlyError, MasterDownError, ClusterDownError)
_PASSING_WORDS = (
    "OOM",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "MISCONF",
    "BUSY",
    "NOREPLICAS",
    "UNBLOCKED",
)
#: Redis's error for a key of another type, written by another program.
WRONG_TYPE = "WRONGTYPE"
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
    address = RedisAddress.parse(url)
    return client_of(address, connection_options(address))


def connect_impatiently(url: str, answer_s: float) -> Redis:
    """A client whose calls time out after `answer_s`, with one retry."""
    address = RedisAddress.parse(url)
    options = connection_options(address, answer_s) | {"retry": Retry(NoBackoff(), 1)}
    return client_of(address, options)


def connection_options(address: RedisAddress, answer_s: float | None = None) -> dict[str, Any]:
    """redis-py's arguments for an address; `answer_s` replaces both of its timeouts."""
    limits = {"socket_timeout": answer_s, "socket_connect_timeout": answer_s}
    return {**OPTIONS, **address.options, **address.tls, **(limits if answer_s else {})}


def is_unavailable(error: BaseException) -> bool:
    """Whether Redis can't be reached, or can't write now; a later call may succeed."""
    if isinstance(error, (*REDIS_UNREACHABLE, *_PASSING)):
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in _PASSING_WORDS)


def as_service_unavailable(error: RedisError) -> ServiceUnavailable | None:
    """The caller's error when Redis is unavailable or refuses this user; None for any other."""
    if is_cluster_error(error):
        return ServiceUnavailable(f"{CLUSTER} ({error})")
    if is_unavailable(error):
        return ServiceUnavailable(f"Redis does not answer: {error}")
    if isinstance(error, NoPermissionError):
        return ServiceUnavailable(f"Redis refuses this user: {error}")
    return None
