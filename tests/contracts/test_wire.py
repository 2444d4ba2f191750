"""The suite's check of everything on the wire against the published schemas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.schemas import examples
from tests import wire
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this module's own."""
    with embedded.redis_server(tmp_path_factory.mktemp("wire")) as made:
        yield made


@pytest.fixture
def aside(url: str) -> Iterator[Redis]:
    """A connection to it; the Redis is emptied after each test, so that the check finds nothing."""
    from redis import Redis

    with Redis.from_url(url) as redis:
        yield redis
        redis.flushall()


def event(redis: Any, **changed: Any) -> None:
    """Write a `started` event, valid but for what is changed."""
    written = {**examples.EVENTS["started"], "task_id": "t", **changed}
    redis.xadd("sag:{t}:events", {"event": json.dumps(written)})


def begun(redis: Any) -> None:
    """Write a started task that is valid."""
    event(redis)
    redis.hset("sag:{t}:task", "request", json.dumps({"prompt": "x"}))


def result(redis: Any, status: str, kept: object) -> None:
    """Write Celery's result of a task."""
    redis.set("celery-task-meta-t", json.dumps({"status": status, "result": kept}))


FAILED = {"exc_type": "GenerationFailed", "exc_message": ["internal", "m", "no", {}]}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda redis: event(redis, seq=0), "event-started seq"),
        (lambda redis: event(redis, type="unheard-of"), "event "),
        (lambda redis: redis.hset("sag:{t}:task", "request", '{"nope": 1}'), "request "),
        (lambda redis: result(redis, "SUCCESS", {"images": []}), "result "),
        (lambda redis: result(redis, "FAILURE", FAILED), "error retryable"),
    ],
)
def test_what_is_not_published_is_found(
    url: str, aside: Redis, spoil: Callable[[Redis], None], says: str
) -> None:
    """An invalid event, request, result or error is found."""
    begun(aside)
    result(aside, "SUCCESS", examples.RESULT)
    assert list(wire.unpublished(url)) == []
    spoil(aside)
    found = list(wire.unpublished(url))
    assert found
    assert all(fault.startswith(says) for _, fault in found)


def test_messages_are_checked_too(url: str, aside: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid message of a started task is found."""
    begun(aside)
    monkeypatch.setattr(wire, "_sent", {"t": [examples.MESSAGE]})
    assert list(wire.unpublished(url)) == []
    monkeypatch.setattr(wire, "_sent", {"t": [examples.MESSAGE | {"headers": {}}]})
    assert {fault.split(" ")[0] for _, fault in wire.unpublished(url)} == {"message"}


def test_invalid_contents_fail_the_test(tmp_path: Path) -> None:
    """A server with invalid contents fails the test that started it."""
    from redis import Redis

    with (
        pytest.raises(AssertionError, match="event-started"),
        embedded.redis_server(tmp_path) as url,
        Redis.from_url(url) as redis,
    ):
        event(redis, seq=0)
