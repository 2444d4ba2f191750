"""From a list in Redis to a kombu message: no entry ends the worker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.asynchronous import Hub
from redis import Redis

from tests.record.box import GOOD, Box, waiting, with_properties
from tests.record.mail import celery_takes, fault_in
from tests.record.test_validate_message_property import JSON
from worker import embedded
from worker.broker.held_messages import HeldMessages
from worker.broker.validate_message import COMPRESSED, envelope, normalize

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "entry",
    [
        with_properties(delivery_tag=None),
        with_properties(delivery_tag=True),
        with_properties(delivery_tag=["t"]),
        with_properties(delivery_tag="\ud800"),
        with_properties(delivery_info=None),
        with_properties(delivery_info={"exchange": {"x": 1}, "routing_key": None}),
        with_properties(priority={"x": 1}),
        GOOD | {"properties": None},
    ],
)
def test_a_message_with_any_properties_is_taken_and_requeued(
    box: Box, redis: Redis, entry: dict[str, Any]
) -> None:
    """A message with any properties is taken and can be requeued whole."""
    (message,) = box.take(redis, entry)
    assert normalize(message) is None
    assert celery_takes(message).id == "t"
    message.reject(requeue=True)
    (again,) = waiting(redis, box.owner)
    assert again["headers"]["id"] == "t"
    assert again["properties"]["delivery_info"]["redelivered"] is True


@pytest.mark.parametrize(
    "entry",
    [
        GOOD | {"body": 5},
        GOOD | {"body": ["x"]},
        GOOD | {"body": "a"},
        GOOD | {"body": "\ud800", "properties": {"delivery_tag": "t"}},
        with_properties(body_encoding="zip"),
        with_properties(body_encoding=["base64"]),
        GOOD | {"headers": GOOD["headers"] | {"compression": "gzip"}},
        GOOD | {"headers": GOOD["headers"] | {"compression": {"x": 1}}},
    ],
)
def test_a_body_that_cannot_be_decoded_is_refused(
    box: Box, redis: Redis, entry: dict[str, Any]
) -> None:
    """A body that is no text or has an unknown encoding is refused."""
    (message,) = box.take(redis, entry)
    assert normalize(message) is None
    assert fault_in(message)


def test_a_compressed_body_is_not_decompressed() -> None:
    """A compressed body is never decompressed: it could fill the memory."""
    made = envelope(GOOD | {"headers": {"compression": "zlib"}}, "q", "tag", 5)
    assert made["body"] is None
    assert made["headers"] == {COMPRESSED: "zlib"}


@pytest.mark.parametrize("entry", [None, 5, "x", [], {}, {"headers": None}, {"headers": []}])
def test_an_entry_without_headers_is_dropped(box: Box, redis: Redis, entry: object) -> None:
    """An entry without headers is dropped, and the next one is taken."""
    assert box.take(redis, entry) == []
    assert HeldMessages(redis).held_by(box.owner) == []
    assert len(box.take(redis, GOOD)) == 1


@settings(max_examples=80, deadline=None, derandomize=True)
@given(entry=JSON | st.fixed_dictionaries({"headers": JSON, "properties": JSON, "body": JSON}))
def test_no_entry_is_too_odd(entry: object) -> None:
    """Any JSON is an envelope or raises TypeError."""
    try:
        made = envelope(entry, "q", "tag", 5)
    except TypeError:
        assert not isinstance(entry, dict) or not isinstance(entry.get("headers"), dict)
    else:
        assert made["properties"]["delivery_tag"] == "tag"
        assert made["properties"]["delivery_info"]["routing_key"] == "q"


def test_a_reconnect_adds_no_timer(redis_url: str, namespace: str) -> None:
    """After any number of reconnects the event loop checks the connection once a period."""
    hub, boxes = Hub(), list[Box]()
    for _ in range(5):
        boxes.append(Box(redis_url, namespace))
        connection = boxes[-1].connection
        connection.transport.register_with_event_loop(connection.connection, hub)
        connection.collect()
        hub.reset()
    live = [each.entry for each in hub.timer.queue if not each.entry.cancelled]
    assert sum(each.fun.__name__ == "_check" for each in live) == 1


def test_a_full_redis_loses_no_message(tmp_path: Path, namespace: str) -> None:
    """A message is taken also when Redis is out of memory."""
    with embedded.redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        box, messages = Box(url, namespace), HeldMessages(redis)
        redis.lpush(box.queues[0], json.dumps(GOOD))
        redis.config_set("maxmemory", 1)
        assert len(box.drain()) == 1
        (tag,) = messages.held_by(namespace)
        held = messages.held(tag)
        assert held is not None
        assert held[0]["headers"]["id"] == "t"
        box.close()
