"""redis-py's connection pools for an address: a server, a socket, or what sentinels call primary.

With sentinels a connection asks them for the primary whenever it connects, and leaves a server that
is no primary any more, or that lost its replicas, when that refuses a write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from redis import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)

if TYPE_CHECKING:
    from api_contracts.redis_io.address import RedisAddress

#: Options of a connection to a sentinel that are those of the connections to Redis.
_SHARED = ("socket_timeout", "socket_connect_timeout", "socket_keepalive")
#: Longest wait for a sentinel, in seconds: another one may answer meanwhile.
SENTINEL_TIMEOUT_S = 2.0
#: What sentinels are asked. redis-py's own function for it fails with one sentinel in 6.4.
ASK = "SENTINEL GET-MASTER-ADDR-BY-NAME"


class NoLongerPrimary(RedisConnectionError):
    """A server refused to write: it may be a former primary."""


class PrimaryConnection(SentinelManagedConnection):
    """A connection to the primary, which it looks up when it connects."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # redis-py's signature
        """redis-py's; also disconnects when a script, not only a command, is refused.

        Or a write of a script that has an answer for each.
        """
        try:
            answer = super().read_response(*args, **kwargs)
        except ResponseError as error:
            self._leave_if_demoted(error)
            raise
        if isinstance(answer, list):
            for each in answer:
                if isinstance(each, ResponseError):
                    self._leave_if_demoted(each)
        return answer

    def _leave_if_demoted(self, error: ResponseError) -> None:
        if is_demoted(error):
            self.disconnect()
            no_longer_primary(error)


class PrimaryTLSConnection(PrimaryConnection, SSLConnection):
    """The same with TLS."""


class _Sentinels(Sentinel):
    """redis-py's, but for what is asked, and with an error that says what each sentinel answers.

    redis-py asks for all that a sentinel watches, where a former primary stands for seconds after
    another one was promoted.
    """

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the primary; raises `MasterNotFoundError` while there is none."""
        errors = []
        for sentinel in self.sentinels:
            try:
                found = known(sentinel.execute_command(ASK, service_name))
            except (RedisError, LookupError) as error:
                errors.append(f"{place_of(sentinel)}: {error}")
                continue
            self.sentinels = with_first(self.sentinels, sentinel)
            return found
        raise no_primary(service_name, errors)


class PrimaryPool(SentinelConnectionPool):
    """Connections to the primary; closes those to the sentinels, too."""

    def __init__(self, address: RedisAddress, **options: Any) -> None:  # noqa: ANN401  # redis-py's
        """`options` are redis-py's arguments of a connection."""
        assert address.sentinels is not None
        hosts, how = list(address.sentinels.hosts), sentinel_options(address, options)
        manager = _Sentinels(hosts, sentinel_kwargs=how | {"retry": Retry(NoBackoff(), 0)})
        super().__init__(address.sentinels.master_name, manager, **options)

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002  # redis-py's
        """Close all connections, or those that are not in use."""
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:  # redis-py before 8.1 closes none
                sentinel.close()


def connection_class(address: RedisAddress) -> type[Any]:
    """redis-py's class of connections for an address."""
    if address.sentinels is not None:
        return PrimaryTLSConnection if address.tls else PrimaryConnection
    if "path" in address.place:
        return UnixDomainSocketConnection
    return SSLConnection if address.tls else Connection


def fitting(address: RedisAddress, options: dict[str, Any]) -> dict[str, Any]:
    """`options` with the address's server, and without what its connections do not take."""
    placed = {name: each for name, each in options.items() if name not in ("host", "port")}
    if "path" in address.place:
        placed = {k: v for k, v in placed.items() if not k.startswith("socket_keepalive")}
    return placed | address.target


def pool_of(address: RedisAddress, options: dict[str, Any]) -> ConnectionPool:
    """A pool; `options` are redis-py's arguments of a connection, without the server."""
    arguments = {"connection_class": connection_class(address)} | fitting(address, options)
    if address.sentinels is not None:
        return PrimaryPool(address, **arguments)
    return ConnectionPool(**arguments)


def client_of(address: RedisAddress, options: dict[str, Any]) -> Redis:
    """A client that owns a pool of its own."""
    return Redis.from_pool(pool_of(address, options))


def sentinel_options(address: RedisAddress, options: dict[str, Any]) -> dict[str, Any]:
    """redis-py's arguments of connections to the sentinels."""
    assert address.sentinels is not None
    shared = {name: options[name] for name in _SHARED if options.get(name)}
    for name in _SHARED[:2]:
        shared[name] = min(shared.get(name, SENTINEL_TIMEOUT_S), SENTINEL_TIMEOUT_S)
    tls = {"ssl": True, **address.tls} if address.tls else {}
    return {"protocol": 2, **shared, **tls, **address.sentinels.login}


def known(answer: Any) -> tuple[str, int]:  # noqa: ANN401  # redis-py's reply
    """Host and port in a sentinel's answer; raises LookupError when it watches no such primary."""
    if answer is None:
        raise LookupError("knows no primary of this name")
    host, port = answer
    return host.decode(), port


def with_first(sentinels: list[Any], first: Any) -> list[Any]:  # noqa: ANN401  # clients, sync or async
    """A new list of the sentinels, that which answered first: others iterate over the old one."""
    return [first, *(each for each in sentinels if each is not first)]


def place_of(sentinel: Any) -> str:  # noqa: ANN401  # a client, sync or async
    """Host and port of a sentinel."""
    place = sentinel.connection_pool.connection_kwargs
    return f"{place['host']}:{place['port']}"


def no_primary(name: str, errors: list[str]) -> MasterNotFoundError:
    """The error when no sentinel names a primary, with what each of them answered."""
    return MasterNotFoundError(f"no sentinel gives the primary {name} ({'; '.join(errors)})")


def is_demoted(error: ResponseError) -> bool:
    """Whether a server refuses to write because it is a replica, or has lost its replicas.

    A primary that the sentinels have replaced loses its replicas seconds before it becomes one.
    """
    return any(word in str(error) for word in ("READONLY", "NOREPLICAS"))


def no_longer_primary(error: ResponseError) -> NoReturn:
    """Raise a connection error, after which callers connect again."""
    raise NoLongerPrimary(f"this Redis may be no primary any more: {error}") from error
