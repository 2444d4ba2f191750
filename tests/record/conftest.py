"""A client, workers and consumers on the same records and queues."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
import stamina
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts import GenerationClient, names
from api_contracts.names import Keys
from tests.record.box import Box
from tests.record.busy_executor import WAIT_S, Busy
from tests.record.owners import LEASE_S, TTL_S, worker
from tests.record.reconcilers import Sent
from tests.record.stuck_record import Stuck
from worker.broker.held_messages import UNACKED, UNACKED_INDEX
from worker.execution import attempt
from worker.record import event_publisher
from worker.record.celery_state import CeleryState
from worker.record.event_publisher import EventPublisher
from worker.recovery import reconciler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from worker.record.task_record import TaskRecord
    from worker.recovery.reconciler import Reconciler


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


@pytest.fixture
def boxes(redis_url: str) -> Iterator[Callable[..., Box]]:
    """Consumers that are closed after the test."""
    made: list[Box] = []

    def make(owner: str, *models: str, **options: Any) -> Box:
        made.append(Box(redis_url, owner, *models, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def no_held_messages(redis: Redis) -> None:
    """No message is held yet."""
    redis.delete(UNACKED, UNACKED_INDEX)


@pytest.fixture
def sent() -> Sent:
    """What is sent again."""
    return Sent()


@pytest.fixture
def small_rounds(no_held_messages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds do as little as they may, and no message is held yet."""
    monkeypatch.setattr(reconciler, "UNAVAILABLE_GRACE_S", 0.0)
    monkeypatch.setattr(reconciler, "ROUND_S", 0.0)


@pytest.fixture
def rounds(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Reconciler]]:
    """Reconcilers that are closed after the test, with short rounds and no grace period."""
    monkeypatch.setattr(reconciler, "UNAVAILABLE_GRACE_S", 0.0)
    monkeypatch.setattr(reconciler, "RECONCILE_PERIOD_S", 0.02)
    redis.delete(UNACKED, UNACKED_INDEX)
    made: list[Reconciler] = []
    yield made
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def torch_is_imported() -> None:
    """The engine imports torch with its first job; that time is not the first test's."""
    importlib.import_module("worker.engine.runner")


@pytest.fixture
def busy(
    torch_is_imported: None,
    records: TaskRecord,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Busy]:
    """The executor, running task `first`."""
    monkeypatch.setattr(attempt, "LOADING_EVENT_PERIOD_S", 0.05)
    made = Busy(records, namespace)
    made.first = made.deliver("first")
    assert made.building.wait(WAIT_S)
    yield made
    made.close()


@pytest.fixture
def queue(redis: Redis, namespace: str) -> Iterator[str]:
    """The queue of the test's own model; its lists are deleted afterwards."""
    yield names.queue_name(namespace)
    redis.delete(*names.queue_lists(namespace), names.ready_key(names.queue_name(namespace)))


@pytest.fixture
def box(redis_url: str, namespace: str) -> Iterator[Box]:
    """A consumer of the test's own model."""
    made = Box(redis_url, namespace)
    yield made
    made.close()
