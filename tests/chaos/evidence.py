"""Everything that is left when a run is over, read from Redis and S3 past the proxy."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from redis import Redis

from api_contracts.events import EVENT, Succeeded
from api_contracts.names import DEFAULT_MODEL, Keys, queue_lists
from tests import wire
from tests.chaos.history import told
from tests.chaos.orders import REPLY_TO
from tests.chaos.stage import BUCKET, PREFIX
from tests.chaos.takeovers import robbed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from api_contracts.events import Event
    from tests.chaos.faults import Struck
    from tests.chaos.history import History, Told
    from tests.chaos.journal import Claim
    from tests.chaos.orders import Order
    from tests.chaos.stage import Stage


@dataclass(frozen=True)
class Record:
    """A task's hash, as far as callers may know it."""

    status: str
    #: Result, error or step, as JSON.
    outcome: Any


@dataclass(frozen=True)
class Answer:
    """What Celery's result backend says."""

    status: str
    result: Any


@dataclass(frozen=True)
class Evidence:
    """What the invariants are checked on."""

    orders: Mapping[str, Order]
    cancels: frozenset[str]
    #: Each task's stream at the end, and what its client was told.
    streams: Mapping[str, tuple[Told, ...]]
    seen: Mapping[str, tuple[Event, ...]]
    #: What clients raised that they must not.
    broke: tuple[tuple[str, str], ...]
    records: Mapping[str, Record]
    answers: Mapping[str, Answer]
    claims: tuple[Claim, ...]
    #: Of the pictures of each request of the pool when nothing disturbed it.
    reference: Mapping[int, tuple[str, ...]]
    #: sha256 of every object in the bucket, by key; manifests also as JSON.
    objects: Mapping[str, str]
    manifests: Mapping[str, Any]
    #: Every key in Redis.
    keys: frozenset[str]
    #: What was pushed of each task, as often as it was.
    replies: Mapping[str, tuple[Event, ...]] = field(default_factory=dict)
    #: What is not as the published schemas have it: where, and why.
    unpublished: tuple[tuple[str, str], ...] = ()
    #: Tasks that were taken from a worker that lives and that no fault hit, and when.
    robbed: tuple[tuple[str, str], ...] = ()
    #: Entries that are left where none may be, by key.
    left: Mapping[str, int] = field(default_factory=dict)
    prefix: str = PREFIX

    def known(self, task_id: str) -> list[Event]:
        """The stream's events but for those of kinds that the contracts don't know."""
        return [each.event for each in self.streams.get(task_id, ()) if each.event is not None]

    def end(self, task_id: str) -> Event | None:
        """The task's first terminal event."""
        return next((event for event in self.known(task_id) if event.is_terminal), None)


def gather(
    stage: Stage,
    history: History,
    reference: Mapping[int, tuple[str, ...]],
    struck: Sequence[Struck],
) -> Evidence:
    """Read it all; nothing may be running."""
    journal = stage.journal
    keys = Keys()
    found, manifests = objects(stage)
    with Redis.from_url(stage.redis.url, protocol=2) as redis:
        tasks = list(history.orders)
        return Evidence(
            orders=dict(history.orders),
            cancels=frozenset(history.cancels),
            streams={task_id: _stream(redis, keys.events(task_id)) for task_id in tasks},
            seen={task_id: tuple(events) for task_id, events in history.seen.items()},
            broke=tuple(history.broke),
            records=_records(redis, keys, tasks),
            answers=_answers(redis, tasks),
            claims=tuple(journal.claims),
            robbed=tuple(robbed(history.timeline, journal.owner, journal.deaths, struck)),
            reference=reference,
            objects=found,
            manifests=manifests,
            replies=_replies(redis),
            unpublished=tuple(wire.unpublished(stage.redis.url)),
            keys=frozenset(key.decode(errors="replace") for key in redis.scan_iter(count=1000)),
            left=left(redis, keys),
        )


def left(redis: Redis, keys: Keys) -> dict[str, int]:
    """How many entries there are where none are left when all tasks have ended."""
    lists = {name: redis.llen(name) for name in queue_lists(DEFAULT_MODEL)}
    return lists | {
        "sag.unacked": redis.hlen("sag.unacked"),
        "sag.unacked_index": redis.zcard("sag.unacked_index"),
        keys.open: redis.zcard(keys.open),
        keys.pushes: redis.zcard(keys.pushes),
    }


def pictures(objects: Mapping[str, str], folder: str) -> tuple[str, ...]:
    """sha256 of the pictures in a task's folder, by their numbers."""
    numbers = (
        int(key[len(folder) : -len(".png")])
        for key in objects
        if key.startswith(folder) and key.endswith(".png")
    )
    return tuple(objects[f"{folder}{number}.png"] for number in sorted(numbers))


def _stream(redis: Redis, key: str) -> tuple[Told, ...]:
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", redis.xrange(key))
    return tuple(told(number, fields) for number, fields in entries)


def _records(redis: Redis, keys: Keys, tasks: list[str]) -> dict[str, Record]:
    found = {}
    for task_id in tasks:
        reply = redis.hmget(keys.task(task_id), "status", "outcome")
        status, outcome = cast("list[bytes | None]", reply)
        if status is not None:
            found[task_id] = Record(status.decode(), json.loads(outcome or b"null"))
    return found


def _answers(redis: Redis, tasks: list[str]) -> dict[str, Answer]:
    found = {}
    for task_id in tasks:
        reply = cast("bytes | None", redis.get(f"celery-task-meta-{task_id}"))
        if reply is not None:
            meta = json.loads(reply)
            found[task_id] = Answer(meta["status"], meta["result"])
    return found


def _replies(redis: Redis) -> dict[str, tuple[Event, ...]]:
    """The queue that nobody reads."""
    found: dict[str, tuple[Event, ...]] = {}
    for entry in cast("list[bytes]", redis.lrange(REPLY_TO["queue"], 0, -1)):
        _, kwargs, _ = json.loads(b64decode(json.loads(entry)["body"]))
        event = EVENT.validate_python(kwargs["event"])
        found[event.task_id] = (*found.get(event.task_id, ()), event)
    return found


def objects(stage: Stage) -> tuple[dict[str, str], dict[str, Any]]:
    """sha256 of every object in the bucket, and every manifest as JSON, by key."""
    client = s3_client(stage)
    found: dict[str, str] = {}
    manifests: dict[str, Any] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", []):
            if (key := entry["Key"]).endswith("/"):
                continue  # a folder, as this server keeps them
            data = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            found[key] = hashlib.sha256(data).hexdigest()
            if key.endswith("/manifest.json"):
                manifests[key] = json.loads(data)
    return found, manifests


def s3_client(stage: Stage) -> Any:
    """A client for the bucket, past the proxy."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=stage.s3.endpoint_url,
        aws_access_key_id=stage.s3.access_key,
        aws_secret_access_key=stage.s3.secret_key,
        region_name="us-east-1",
    )


def shas(event: Event) -> tuple[str, ...]:
    """sha256 of the pictures that a `succeeded` event names."""
    return tuple(i.sha256 for i in event.result.images) if isinstance(event, Succeeded) else ()
