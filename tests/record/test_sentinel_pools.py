"""Connections to what sentinels call the primary: which are kept, closed and left."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from api_contracts.redis_io import aio_pools, connection, pools
from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.connection import connect
from tests.record.box import Box, letter, post
from worker import embedded
from worker.broker import intake

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from redis import Redis

#: Stubs stand for the sentinels.
URL = "sentinel://127.0.0.1:9/0?master_name=pictures"
ADDRESS = RedisAddress.parse(URL)
OPTIONS = connection.connection_options(ADDRESS)


class Stub:
    """A sentinel that answers what `answer` returns, which the asyncio version awaits."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.connection_pool = SimpleNamespace(connection_kwargs={"host": "h", "port": 1})
        self._answer, self.is_closed = answer, False

    def execute_command(self, *_command: str) -> Any:
        """What redis-py returns."""
        return self._answer()

    def close(self) -> None:
        """Note it."""
        self.is_closed = True

    async def aclose(self) -> None:
        """Note it."""
        self.is_closed = True


def fail() -> None:
    """Raise, as a sentinel that is gone."""
    raise RedisConnectionError


async def fail_later() -> None:
    """Raise with asyncio, as a sentinel that is gone."""
    fail()


def server_of(redis: Redis) -> tuple[bytes, int]:
    """Where a Redis is, as a sentinel says it."""
    place = redis.connection_pool.connection_kwargs
    return place["host"].encode(), place["port"]


def test_two_lookups_at_once_forget_no_sentinel() -> None:
    """Two lookups at once put first the sentinel that answered, and lose none of the others."""
    together = threading.Barrier(2)

    def answer() -> tuple[bytes, int]:
        together.wait(10)
        return b"h", 1

    dead, answers, other = Stub(fail), Stub(answer), Stub(fail)
    manager = pools.PrimaryPool(ADDRESS).sentinel_manager
    manager.sentinels = [dead, answers, other]
    threads = [threading.Thread(target=manager.discover_master, args=("x",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert manager.sentinels == [answers, dead, other]


def test_two_lookups_at_once_forget_no_sentinel_with_asyncio() -> None:
    """Two lookups at once with asyncio put first the sentinel that answered, and lose none."""

    async def look_up() -> None:
        together = asyncio.Barrier(2)

        async def answer() -> tuple[bytes, int]:
            await together.wait()
            return b"h", 1

        dead, answers, other = Stub(fail_later), Stub(answer), Stub(fail_later)
        manager = aio_pools.PrimaryPool(ADDRESS).sentinel_manager
        manager.sentinels = [dead, answers, other]
        await asyncio.gather(*(manager.discover_master("x") for _ in range(2)))
        assert manager.sentinels == [answers, dead, other]

    asyncio.run(look_up())


def test_sentinels_are_closed_with_any_version_of_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client closes its sentinels also before redis-py 8.1, which had no `close` for them."""
    monkeypatch.delattr("redis.sentinel.Sentinel.close", raising=False)
    monkeypatch.delattr("redis.asyncio.sentinel.Sentinel.aclose", raising=False)
    asked = [Stub(fail), Stub(fail)]
    client = pools.client_of(ADDRESS, OPTIONS)
    manager: Any = client.connection_pool
    manager.sentinel_manager.sentinels = asked
    client.connection_pool.disconnect(inuse_connections=False)
    assert not any(each.is_closed for each in asked)
    client.close()
    assert all(each.is_closed for each in asked)

    async def closed() -> list[bool]:
        asked = [Stub(fail_later), Stub(fail_later)]
        client = aio_pools.client_of(ADDRESS, OPTIONS)
        manager: Any = client.connection_pool
        manager.sentinel_manager.sentinels = asked
        await client.connection_pool.disconnect(inuse_connections=False)
        assert not any(each.is_closed for each in asked)
        await client.aclose()
        return [each.is_closed for each in asked]

    assert all(asyncio.run(closed()))


def test_asyncio_keeps_no_connection_to_a_former_primary(redis: Redis) -> None:
    """A connection given back once another primary is known is closed; any other is kept."""
    server = server_of(redis)

    async def answer() -> tuple[bytes, int]:
        return server

    async def released() -> None:
        client = aio_pools.client_of(ADDRESS, OPTIONS)
        pool: Any = client.connection_pool
        pool.sentinel_manager.sentinels = [Stub(answer)]
        held = await pool.get_connection()
        await pool.release(held)
        assert held.is_connected
        held = await pool.get_connection()
        pool.master_address = "another", 1
        await pool.release(held)
        assert not held.is_connected
        assert await client.ping()
        await client.aclose()

    asyncio.run(released())


@pytest.mark.parametrize("answers", ["{refused, 0}", "{0, refused}", "{0, refused, 1}"])
def test_a_refusal_among_answers_makes_the_connection_leave(redis: Redis, answers: str) -> None:
    """A connection is left when any of a script's writes is refused for a lack of replicas."""
    client = pools.client_of(ADDRESS, OPTIONS | {"retry": Retry(NoBackoff(), 0)})
    manager: Any = client.connection_pool
    manager.sentinel_manager.sentinels = [Stub(lambda: server_of(redis))]
    refused = "local refused = redis.error_reply('NOREPLICAS Not enough good replicas to write.')"
    with client, pytest.raises(pools.NoLongerPrimary, match="NOREPLICAS"):
        client.eval(f"{refused} return {answers}", 0)


def test_a_primary_without_replicas_does_not_stop_the_consumer(
    tmp_path: Path,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A primary without replicas does not stop the consumer, which asks the sentinels again."""
    asked = []

    with embedded.redis_server(tmp_path) as url, connect(url) as redis:

        def discover(*_: object) -> tuple[str, int]:
            host, port = server_of(redis)
            asked.append(port)
            return host.decode(), port

        monkeypatch.setattr("api_contracts.redis_io.pools._Sentinels.discover_master", discover)
        monkeypatch.setattr(intake, "REFUSED_PAUSE_S", 0.05)
        post(redis, namespace, "waits")
        redis.config_set("min-replicas-to-write", 1)
        box = Box(URL, namespace)
        with pytest.raises(TimeoutError):
            box.drain(0.5)
        assert any("Redis refuses: " in each and "NOREPLICAS" in each for each in caplog.messages)
        assert len(asked) >= 2
        redis.config_set("min-replicas-to-write", 0)
        (message,) = box.drain()
        assert message.headers == letter("waits")["headers"]
        box.close()
