"""A client and two workers on the same records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import stamina
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts import GenerationClient
from api_contracts.names import Keys
from tests.record.owners import worker

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
