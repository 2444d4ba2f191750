"""The asynchronous client of a Redis that does not answer."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from api_contracts import AsyncGenerationClient, WaitTimeout
from api_contracts.client.aio_records import MAX_CONNECTIONS
from api_contracts.redis_io.connection import COUNT_S
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that accepts connections and does not answer."""
    with embedded.redis_server(tmp_path_factory.mktemp("silent")) as url:
        with Redis.from_url(url) as redis:
            process = int(redis.info("server")["process_id"])
        os.kill(process, signal.SIGSTOP)
        yield url
        os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("turns", range(4))
def test_cancellation_works_while_redis_is_silent(silent: str, turns: int) -> None:
    """A cancelled caller ends, whatever it was doing at that moment."""

    async def body() -> None:
        async with AsyncGenerationClient(silent) as client:
            for wait in (client.handle("t").result(), client.handle("t").status()):
                waiting = asyncio.create_task(wait)
                for _ in range(turns):
                    await asyncio.sleep(0)
                waiting.cancel()
                done, _ = await asyncio.wait([waiting], timeout=12)
                assert done
                assert waiting.cancelled()

    asyncio.run(body())


def test_many_waits_end_in_time(silent: str) -> None:
    """Waits end in time although only a few calls run at once and none is answered."""

    async def body() -> float:
        async with AsyncGenerationClient(silent) as client:
            began_s = asyncio.get_running_loop().time()
            waiting = [client.handle("t").result(timeout=1) for _ in range(4 * MAX_CONNECTIONS)]
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(end, WaitTimeout) for end in ends)
            return asyncio.get_running_loop().time() - began_s

    assert asyncio.run(body()) < 5


def test_a_silent_broker_does_not_block_records(
    silent: str, redis_url: str, namespace: str
) -> None:
    """Calls for records are answered at once, however many submissions wait for the broker."""

    async def body() -> list[Any]:
        async with AsyncGenerationClient(silent, namespace, events_url=redis_url) as client:
            request_data = {"prompt": "x", "model": namespace}
            submits = [
                client.submit(request_data, f"t{number}") for number in range(2 * MAX_CONNECTIONS)
            ]
            waiting = [asyncio.create_task(each) for each in submits]
            await asyncio.sleep(0)  # each has asked
            assert await asyncio.wait_for(client.status_many(["x"]), COUNT_S / 2) == {"x": None}
            for each in waiting:
                each.cancel()
            return await asyncio.gather(*waiting, return_exceptions=True)

    assert {type(end) for end in asyncio.run(body())} == {asyncio.CancelledError}
