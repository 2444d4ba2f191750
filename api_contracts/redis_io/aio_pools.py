"""The asyncio version of `pools`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio import (
    Connection,
    ConnectionPool,
    Redis,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from api_contracts.redis_io.pools import (
    ASK,
    fitting,
    is_demoted,
    known,
    no_longer_primary,
    no_primary,
    place_of,
    sentinel_options,
    with_first,
)

if TYPE_CHECKING:
    from api_contracts.redis_io.address import RedisAddress


class PrimaryConnection(SentinelManagedConnection):
    """A connection to the primary, which it looks up when it connects."""

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # redis-py's signature
        """redis-py's; also disconnects when a script, not only a command, is refused."""
        try:
            return await super().read_response(*args, **kwargs)
        except ResponseError as error:
            if is_demoted(error):
                await self.disconnect()
                no_longer_primary(error)
            raise


class PrimaryTLSConnection(PrimaryConnection, SSLConnection):
    """The same with TLS."""


class _Sentinels(Sentinel):
    """redis-py's, changed as the one in `pools`."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the primary; raises `MasterNotFoundError` while there is none."""
        errors = []
        for sentinel in self.sentinels:
            try:
                found = known(await sentinel.execute_command(ASK, service_name))
            except (RedisError, LookupError) as error:
                errors.append(f"{place_of(sentinel)}: {error}")
                continue
            self.sentinels = with_first(self.sentinels, sentinel)
            return found
        raise no_primary(service_name, errors)


class PrimaryPool(SentinelConnectionPool):
    """Connections to the primary; closes those to the sentinels, and to a former primary."""

    def __init__(self, address: RedisAddress, **options: Any) -> None:  # noqa: ANN401  # redis-py's
        """`options` are redis-py's arguments of a connection."""
        assert address.sentinels is not None
        hosts, how = list(address.sentinels.hosts), sentinel_options(address, options)
        manager = _Sentinels(hosts, sentinel_kwargs=how | {"retry": Retry(NoBackoff(), 0)})
        super().__init__(address.sentinels.master_name, manager, **options)

    async def release(self, connection: Any) -> None:  # noqa: ANN401  # redis-py's connection
        """Take a connection back; redis-py's asyncio would use one to a former primary again."""
        if (connection.host, connection.port) != self.master_address:
            await connection.disconnect(nowait=True)
        await super().release(connection)

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002  # redis-py's
        """Close all connections, or those that are not in use."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:  # redis-py before 8.1 closes none
                await sentinel.aclose()


def client_of(address: RedisAddress, options: dict[str, Any]) -> Redis:
    """A client that owns a pool of its own; connects on first use."""
    arguments = {"connection_class": _connection_class(address)} | fitting(address, options)
    if address.sentinels is not None:
        return Redis.from_pool(PrimaryPool(address, **arguments))
    return Redis.from_pool(ConnectionPool(**arguments))


def _connection_class(address: RedisAddress) -> type[Any]:
    if address.sentinels is not None:
        return PrimaryTLSConnection if address.tls else PrimaryConnection
    if "path" in address.place:
        return UnixDomainSocketConnection
    return SSLConnection if address.tls else Connection
