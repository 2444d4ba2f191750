"""kombu's Redis transport over the connections of an address, for clients and workers.

kombu's own takes sockets and sentinels by URLs of other forms, the latter as a transport of its
own. `tests/record/upstream.py` lists the functions that are replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from kombu.transport import redis as kombu_redis

from api_contracts.redis_io import pools

if TYPE_CHECKING:
    from redis import ConnectionPool

    from api_contracts.redis_io.address import RedisAddress


class Channel(kombu_redis.Channel):
    """kombu's channel; the transport option `address` says where Redis is."""

    @property
    def address(self) -> RedisAddress:
        """Where Redis is; not after the channel was closed."""
        return cast("RedisAddress", self.connection.client.transport_options["address"])

    @property
    def connection_class(self) -> type[Any]:
        """redis-py's class of connections, from which kombu derives its own."""
        return pools.connection_class(self.address)

    connection_class_ssl = connection_class

    def _get_pool(self, asynchronous: bool = False) -> ConnectionPool:  # noqa: FBT001, FBT002  # kombu's signature
        """kombu's, but for where the pool connects to."""
        params = self._connparams(asynchronous=asynchronous)
        self.keyprefix_fanout: str = self.keyprefix_fanout.format(db=params["db"])
        return pools.pool_of(self.address, params)


class Transport(kombu_redis.Transport):
    """kombu's transport with the channel above."""

    Channel = Channel
