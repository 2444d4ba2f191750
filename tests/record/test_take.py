"""Taking a message: in one step, by priority, under a delivery tag of its own."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import stamina
from kombu import Exchange, Queue
from prometheus_client import REGISTRY
from redis import Redis
from redis.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from api_contracts import names
from tests.record.box import GOOD, Box, ids_waiting, letter, one, post, waiting
from tests.record.owners import until
from worker import embedded
from worker.broker import intake
from worker.broker.held_messages import UNACKED_INDEX, HeldMessages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def rejected(reason: str) -> float:
    return REGISTRY.get_sample_value("sag_messages_rejected_total", {"reason": reason}) or 0.0


def test_the_order_is_by_priority_over_all_queues(
    boxes: Callable[..., Box], redis: Redis, namespace: str
) -> None:
    """Messages are taken by priority over all queues, then in the order in which they came."""
    models = [f"{namespace}.{name}" for name in "ab"]
    box = boxes(namespace, *models)
    post(redis, models[0], "a9", priority=9)
    post(redis, models[0], "a5", "a5-later", priority=5)
    post(redis, models[1], "b0", "b0-later", priority=0)
    post(redis, models[1], "b7", priority=7)
    got = [one(box.drain()) for _ in range(6)]
    assert [each.headers["id"] for each in got] == [
        "b0", "b0-later", "a5", "a5-later", "b7", "a9",
    ]  # fmt: skip
    assert [each.delivery_info["routing_key"][-1] for each in got] == list("bbaaba")
    held = [HeldMessages(redis).held(tag) for tag in HeldMessages(redis).held_by(namespace)]
    assert sorted(each.queue for each in held if each) == sorted(
        names.queue_name(models[number]) for number in (1, 1, 0, 0, 1, 0)
    )


def test_a_crash_before_the_answer_loses_nothing(
    boxes: Callable[..., Box], redis: Redis, namespace: str
) -> None:
    """A message that left its list is held, with owner and lease, whenever the process dies."""
    box = boxes(namespace, lease_s=77.0)
    one(box.take(redis, GOOD)).ack()
    post(redis, namespace, "lost")
    box.ask()
    box.channel.client.connection.disconnect()
    until(lambda: HeldMessages(redis).held_by(namespace))
    assert waiting(redis, namespace) == []
    (tag,) = HeldMessages(redis).held_by(namespace)
    held = HeldMessages(redis).held(tag)
    assert held == (letter("lost"), 5, names.queue_name(namespace))
    seconds, _ = redis.time()
    left_s = float(redis.zscore(UNACKED_INDEX, tag) or 0) - seconds
    assert 60 < left_s <= 78


def test_a_queue_of_another_type_blocks_no_other(
    boxes: Callable[..., Box], redis: Redis, namespace: str
) -> None:
    """A queue's key of another type blocks no other queue."""
    models = [f"{namespace}.{name}" for name in "ab"]
    redis.sadd(names.queue_lists(models[0])[0], "x")
    box = boxes(namespace, *models)
    post(redis, models[1], "b5", priority=5)
    assert one(box.drain()).headers["id"] == "b5"


def test_polling_goes_on_while_redis_refuses_writes(
    tmp_path: Path, namespace: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """Polling goes on while Redis refuses writes, as a replica does, with a line in the log."""
    monkeypatch.setattr(intake, "REFUSED_PAUSE_S", 0.01)
    with embedded.redis_server(tmp_path) as url, Redis.from_url(url) as replica:
        box = Box(url, namespace)
        post(replica, namespace, "t")
        replica.replicaof("127.0.0.1", "1")
        with pytest.raises(TimeoutError):
            box.connection.drain_events(timeout=0.3)
        assert "no message taken: Redis refuses: " in caplog.text
        assert re.search("READONLY|read only replica", caplog.text)  # by the server's version
        replica.replicaof("NO", "ONE")
        assert one(box.drain()).headers["id"] == "t"


def test_a_missing_right_is_an_error(tmp_path: Path, namespace: str) -> None:
    """A missing right raises an error and does not look like an empty queue."""
    with embedded.redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        box = Box(url, namespace)
        post(redis, namespace, "t")
        redis.acl_setuser("default", commands=["-rpop"])
        with pytest.raises(ResponseError, match=r"can.t run this command|no permissions to run"):
            box.drain()


def test_one_that_would_claim_nothing_takes_nothing(
    boxes: Callable[..., Box], redis: Redis, namespace: str
) -> None:
    """A process that would claim no task takes no message."""
    well = False
    box = boxes(namespace, may_take=lambda: well)
    post(redis, namespace, "t")
    with pytest.raises(TimeoutError):
        box.connection.drain_events(timeout=0.2)
    assert ids_waiting(redis, namespace) == ["t"]
    well = True
    assert one(box.drain()).headers["id"] == "t"


@pytest.mark.parametrize("fault", [RedisConnectionError("reset"), ResponseError("wrong type")])
@pytest.mark.parametrize("end", ["ack", "drop", "give_back"])
def test_a_message_that_can_not_be_ended_keeps_no_slot(  # fixtures
    boxes: Callable[..., Box],
    redis: Redis,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    fault: Exception,
) -> None:
    """A message that can't be acknowledged or rejected is retried, and frees its slot."""
    box = boxes(namespace)
    box.channel.basic_qos(prefetch_count=1)
    message = one(box.take(redis, GOOD))
    assert not box.channel.qos.can_consume()
    faults, send = [fault], Connection.send_packed_command

    def fail_once(*args: Any, **options: Any) -> Any:
        if faults:
            raise faults.pop()
        return send(*args, **options)

    monkeypatch.setattr(Connection, "send_packed_command", fail_once)
    ways = {
        "ack": message.ack, "drop": message.reject, "give_back": lambda: message.reject(True),
    }  # fmt: skip
    with suppress(ResponseError), stamina.set_testing(True, attempts=3):
        ways[end]()
    assert box.channel.qos.can_consume()
    if isinstance(fault, RedisConnectionError):
        assert HeldMessages(redis).held_by(namespace) == []
        assert len(waiting(redis, namespace)) == (end == "give_back")


def test_remote_control_works_without_polling(
    boxes: Callable[..., Box], redis: Redis, namespace: str
) -> None:
    """Remote control works in a process that takes no messages."""
    box, heard = boxes(namespace, may_take=lambda: False), list[str]()
    exchange = Exchange(f"{namespace}.ask", type="fanout")
    ask = Queue(f"{namespace}.ask", exchange, auto_delete=True)

    def is_heard() -> bool:
        with suppress(TimeoutError):
            box.connection.drain_events(timeout=0.05)
        return bool(heard)

    with box.connection.Consumer(ask, callbacks=[lambda body, _: heard.append(body)], no_ack=True):
        until(lambda: not is_heard() and redis.pubsub_numpat())
        box.connection.Producer().publish("well?", exchange=exchange)
        until(is_heard)
    assert heard == ["well?"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (json.dumps(GOOD).encode() + b" " * 2000, "too_large"),
        (b"garbage", "no_message"),
        (b"{", "no_message"),
        (b"", "no_message"),
        (b"\xff\xfe\x00", "no_message"),
        (b"[" * 1500, "no_message"),
        (b"[]", "no_message"),
        (b"null", "no_message"),
        (b'{"headers": 5}', "no_message"),
    ],
)
def test_an_entry_that_is_no_message_is_dropped_and_counted(  # fixtures
    boxes: Callable[..., Box],
    redis: Redis,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    entry: bytes,
    reason: str,
) -> None:
    """An entry that is no message is dropped and counted, and the next message is taken."""
    monkeypatch.setattr("worker.broker.intake.MAX_MESSAGE_BYTES", 1600)
    box, before = boxes(namespace), rejected(reason)
    assert box.take(redis, entry) == []
    assert rejected(reason) == before + 1
    assert waiting(redis, namespace) == []
    assert HeldMessages(redis).held_by(namespace) == []
    assert one(box.take(redis, GOOD)).headers["id"] == "t"
