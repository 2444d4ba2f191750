"""A client and two workers on the same records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import stamina
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts import GenerationClient
from api_contracts.names import Keys
from tests.record.owners import LEASE_S, TTL_S, worker
from tests.record.stuck_record import Stuck
from worker.record import event_publisher
from worker.record.celery_state import CeleryState
from worker.record.event_publisher import EventPublisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from worker.record.task_record import TaskRecord


@pytest.fixture
def keys(namespace: str) -> Keys:
    """The keys of the test's namespace."""
    return Keys(namespace)


@pytest.fixture
def records(redis: Redis, keys: Keys) -> TaskRecord:
    """The record as the first worker accesses it."""
    return worker(redis, keys, "first")


@pytest.fixture
def other(redis: Redis, keys: Keys) -> TaskRecord:
    """The record as another worker accesses it."""
    return worker(redis, keys, "other")


@pytest.fixture
def client(redis_url: str, namespace: str) -> Iterator[GenerationClient]:
    """A client that submits and cancels."""
    with GenerationClient(redis_url, namespace) as made:
        yield made


@pytest.fixture
def task_id(client: GenerationClient, namespace: str) -> str:
    """A queued task, in a queue of the test's own."""
    return client.submit({"prompt": "x", "model": namespace}, "task").task_id


class LostAnswer:
    """A script whose first answer is lost after it ran."""

    def __init__(self, script: Callable[..., Any]) -> None:
        self.script, self.calls = script, 0

    def __call__(self, **arguments: Any) -> Any:
        """Run the script; fail the first time."""
        answer = self.script(**arguments)
        self.calls += 1
        if self.calls == 1:
            raise RedisConnectionError("lost")
        return answer


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[TaskRecord, str], LostAnswer]]:
    """Lose the first answer of a script of a `TaskRecord`; retries do not pause."""

    def lose(records: TaskRecord, script: str) -> LostAnswer:
        lost = LostAnswer(getattr(records, f"_{script}"))
        monkeypatch.setattr(records, f"_{script}", lost)
        return lost

    with stamina.set_testing(True, attempts=3):
        yield lose


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EventPublisher]]:
    """Publishers that are closed after the test, with short pauses after errors."""
    monkeypatch.setattr(event_publisher, "RETRY_PAUSE_S", 0.01)
    made: list[EventPublisher] = []

    def make(records: TaskRecord) -> EventPublisher:
        made.append(EventPublisher(records, CeleryState(lambda *_: None)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def stuck(redis: Redis, keys: Keys) -> Stuck:
    """A worker's record that is stuck."""
    records = Stuck(redis, keys, "first", record_ttl_s=TTL_S, lease_s=LEASE_S)
    records.stick()
    return records
