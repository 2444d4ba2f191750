"""A client, a webhook receiver, and pushers with short pauses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient
from api_contracts.names import Keys
from tests.push.pushes import SECRET, TARGET
from tests.push.receiver import Receiver, receiver
from tests.record.owners import worker
from worker.push import pusher
from worker.push.celery_replies import CeleryReplies
from worker.push.pusher import Pusher
from worker.push.webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from worker.config.push_targets import ReplyTarget
    from worker.record.task_record import TaskRecord


@pytest.fixture
def keys(namespace: str) -> Keys:
    """The keys of the test's namespace."""
    return Keys(namespace)


@pytest.fixture
def client(redis_url: str, namespace: str) -> Iterator[GenerationClient]:
    """A client in the test's namespace."""
    with GenerationClient(redis_url, namespace) as made:
        yield made


@pytest.fixture
def hook() -> Iterator[Receiver]:
    """A webhook receiver on this machine."""
    with receiver() as made:
        yield made


@pytest.fixture
def records(redis: Redis, keys: Keys) -> TaskRecord:
    """A worker's access to the records."""
    return worker(redis, keys, "first")


@pytest.fixture
def start(
    records: TaskRecord, redis_url: str, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Pusher]]:
    """Start a pusher with short pauses."""
    monkeypatch.setattr(pusher, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(pusher, "IDLE_POLL_S", 0.02)  # tests write what other processes leave
    monkeypatch.setattr(pusher, "FIRST_RETRY_S", 0.05)
    made: list[Pusher] = []

    def begin(retry_s: float = 60.0, targets: tuple[ReplyTarget, ...] = (TARGET,)) -> Pusher:
        webhooks = Webhooks([hook.origin], [SECRET], private_addresses=True)
        made.append(Pusher(records.pushes, CeleryReplies(targets, redis_url), webhooks, retry_s))
        made[-1].start()
        return made[-1]

    yield begin
    for each in made:
        each.close()
