"""Clients over the session's Redis, and a worker's access to their records."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import AsyncGenerationClient, GenerationClient
from tests.record.owners import worker

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from redis import Redis

    from worker.record.task_record import TaskRecord


@pytest.fixture
def client(redis_url: str, namespace: str) -> Iterator[GenerationClient]:
    """A client in the test's namespace; its connections carry the namespace as their name."""
    named = f"{redis_url}?client_name={namespace}"
    with GenerationClient(redis_url, namespace, events_url=named) as made:
        yield made


@pytest.fixture
def records(redis: Redis, client: GenerationClient) -> TaskRecord:
    """A worker's access to the records that the client makes."""
    return worker(redis, client.keys, "worker")


@pytest.fixture
def request_data(namespace: str) -> dict[str, object]:
    """A request for a model, and so a queue, of the test's own."""
    return {"prompt": "x", "model": namespace, "metadata": {"k": "v"}}


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis-py and kombu do not pause between their attempts to connect."""
    monkeypatch.setattr("redis.retry.sleep", lambda _s: None)
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _s: None)


PATIENCE_S = 60.0


@pytest.fixture
def run(redis_url: str, namespace: str) -> Callable[..., Any]:
    """Run a coroutine function with an asynchronous client in the test's namespace."""

    def call(body: Callable[[AsyncGenerationClient], Coroutine[Any, Any, Any]]) -> Any:
        async def within() -> Any:
            named = f"{redis_url}?client_name={namespace}"
            async with AsyncGenerationClient(redis_url, namespace, events_url=named) as client:
                return await asyncio.wait_for(body(client), PATIENCE_S)

        return asyncio.run(within())

    return call
