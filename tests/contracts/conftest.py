"""A client over the session's Redis, and a worker's access to its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient
from tests.record.owners import worker

if TYPE_CHECKING:
    from collections.abc import Iterator

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
