"""Queues of task messages, and consumers of them: kombu's channel, and the bare script."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kombu import Connection

from api_contracts import names
from api_contracts.names import MAX_MESSAGE_BYTES
from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.scripts import load
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, new_tag
from worker.broker.intake import WOKEN_S

if TYPE_CHECKING:
    from kombu.message import Message
    from redis import Redis

GOOD: dict[str, Any] = {
    "body": "W1tdLCB7InJlcXVlc3QiOiB7InByb21wdCI6ICJ4In19LCB7fV0=",
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {"task": names.TASK_NAME, "id": "t"},
    "properties": {
        "delivery_tag": "tag",
        "delivery_info": {"exchange": "", "routing_key": "q"},
        "body_encoding": "base64",
        "priority": 5,
    },
}


def with_properties(**changes: Any) -> dict[str, Any]:
    """A good message with other properties."""
    return GOOD | {"properties": GOOD["properties"] | changes}


def letter(task_id: str, priority: int = 5) -> dict[str, Any]:
    """A good message of a task."""
    return with_properties(priority=priority) | {"headers": GOOD["headers"] | {"id": task_id}}


def post(redis: Redis, model: str, *task_ids: str, priority: int = 5) -> None:
    """Send messages as a client does, each behind those that wait."""
    for task_id in task_ids:
        name = names.queue_list(names.queue_name(model), priority)
        redis.lpush(name, json.dumps(letter(task_id, priority)))


def waiting(redis: Redis, model: str) -> list[dict[str, Any]]:
    """All waiting messages of a model, in the order in which they are taken."""
    lists: list[Any] = [redis.lrange(name, 0, -1) for name in names.queue_lists(model)]
    return [json.loads(entry) for entries in lists for entry in reversed(entries)]


def ids_waiting(redis: Redis, model: str) -> list[str]:
    """The task ids of the waiting messages, in the order in which they are taken."""
    return [message["headers"]["id"] for message in waiting(redis, model)]


def taken(redis: Redis, owner: str, model: str, lease_s: float = 30.0) -> str:
    """Take a model's next message for a process; returns its delivery tag."""
    tag, lists = new_tag(owner), names.queue_lists(model)
    answer = load(redis, "worker.broker", "take")(
        unacked=UNACKED,
        unacked_index=UNACKED_INDEX,
        wake=f"{names.WAKE_PREFIX}{owner}",
        lists=lists,
        tag=tag,
        lease_s=lease_s,
        max_bytes=MAX_MESSAGE_BYTES,
        owner=owner,
        tasks=0,
        leaves=False,
        woken_s=WOKEN_S,
        below=names.wake_below(urgent=False),
        origins=[part for each in names.PRIORITIES for part in (names.queue_name(model), each)],
    )
    assert isinstance(answer, list), "nothing waits"
    return tag


def lapse_all(redis: Redis, owner: str) -> None:
    """Let the leases of an owner's messages run out."""
    for tag, _ in redis.zscan_iter(UNACKED_INDEX, match=f"{owner}/*"):
        redis.zadd(UNACKED_INDEX, {tag: 1.0})


class Box:
    """A consumer over the worker's transport and a real Redis."""

    def __init__(self, url: str, owner: str, *models: str, **options: Any) -> None:
        """Consume the queues of `models`, or of one model named as the owner."""
        self.queues, self.owner = [names.queue_name(each) for each in models or (owner,)], owner
        address = RedisAddress.parse(url)
        self.connection = Connection(
            address.url,
            transport="worker.broker.transport:Transport",
            transport_options={
                **names.TRANSPORT_OPTIONS, "address": address, "owner": owner, **options
            },
        )  # fmt: skip
        self.channel = self.connection.channel()
        self._got: list[Message] = []
        for number, queue in enumerate(self.queues):
            self.channel.basic_consume(
                queue, no_ack=False, callback=self._got.append, consumer_tag=f"c{number}"
            )

    def take(self, redis: Redis, entry: object) -> list[Message]:
        """Queue an entry; returns what the consumer gets of it."""
        redis.lpush(self.queues[0], entry if isinstance(entry, bytes) else json.dumps(entry))
        return self.drain()

    def drain(self, timeout_s: float = 5.0) -> list[Message]:
        """What the consumer gets of the next entry."""
        self._got.clear()
        self.connection.drain_events(timeout=timeout_s)
        return list(self._got)

    def ask(self) -> None:
        """Poll for the next entry without waiting for the answer."""
        self.channel.connection.cycle.on_poll_start()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def one(messages: list[Message]) -> Message:
    (message,) = messages
    return message
