"""What Redis and S3 hold when a run is over, read without the proxy."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from redis import Redis

from api_contracts.errors import ErrorCode
from api_contracts.events import EVENT, Failed, Succeeded
from api_contracts.names import Keys
from tests import wire
from tests.chaos import messages
from tests.chaos.deployment import BUCKET, PREFIX
from tests.chaos.fault_schedule import FaultKind
from tests.chaos.others import PREFIX as OTHERS
from tests.chaos.recorded_events import parse_entry
from tests.chaos.submissions import REPLY_TO
from tests.chaos.takeovers import GRACE_S, unexplained

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from api_contracts.events import Event
    from tests.chaos.deployment import Deployment
    from tests.chaos.fault_injector import AppliedFault
    from tests.chaos.others import Other
    from tests.chaos.recorded_events import RecordedEvents, StreamEntry
    from tests.chaos.submissions import Submission
    from tests.chaos.worker_logs import Claim


@dataclass(frozen=True)
class Record:
    """The part of a task's record that callers may read."""

    status: str
    #: Result, error or step, as JSON.
    outcome: Any


@dataclass(frozen=True)
class CeleryResult:
    """A task's state and result in Celery's result backend."""

    status: str
    result: Any


@dataclass(frozen=True)
class Evidence:
    """What the laws are checked on."""

    submissions: Mapping[str, Submission]
    cancels: frozenset[str]
    #: Each task's stream at the end, and the events that its client read.
    streams: Mapping[str, tuple[StreamEntry, ...]]
    client_events: Mapping[str, tuple[Event, ...]]
    #: Undocumented errors of clients: task and text.
    client_errors: tuple[tuple[str, str], ...]
    records: Mapping[str, Record]
    celery_results: Mapping[str, CeleryResult]
    claims: tuple[Claim, ...]
    #: sha256 of the pictures of each request of the pool, made without faults.
    reference: Mapping[int, tuple[str, ...]]
    #: sha256 of every object in the bucket, by key; manifests also as JSON.
    objects: Mapping[str, str]
    manifests: Mapping[str, Any]
    #: Every key in Redis.
    keys: frozenset[str]
    #: The events that were pushed for each task.
    replies: Mapping[str, tuple[Event, ...]] = field(default_factory=dict)
    #: What breaks the published schemas: where, and how.
    unpublished: tuple[tuple[str, str], ...] = ()
    #: Tasks that were taken from a living worker that no fault had hit: task and how.
    takeovers: tuple[tuple[str, str], ...] = ()
    #: Tasks that failed as a store without conditional writes refused their pictures.
    refused_writes: frozenset[str] = frozenset()
    #: Number of entries by key, of keys that must be empty.
    left: Mapping[str, int] = field(default_factory=dict)
    #: The tasks that waited below those of the schedule; what they left is not in the rest.
    others: Mapping[str, Other] = field(default_factory=dict)
    prefix: str = PREFIX

    def events_of(self, task_id: str) -> list[Event]:
        """The stream's events without those of types that the contracts do not know."""
        return [each.event for each in self.streams.get(task_id, ()) if each.event is not None]

    def end(self, task_id: str) -> Event | None:
        """The task's first terminal event."""
        return next((event for event in self.events_of(task_id) if event.is_terminal), None)


def collect(
    deployment: Deployment,
    events: RecordedEvents,
    reference: Mapping[int, tuple[str, ...]],
    applied: Sequence[AppliedFault],
    others: Mapping[str, Other],
) -> Evidence:
    """Read everything; no worker may run, and `others` must have been dropped."""
    logs = deployment.logs
    keys = Keys()
    found, manifests = objects(deployment)
    with Redis.from_url(deployment.redis.url, protocol=2) as redis:
        tasks = list(events.submissions)
        return Evidence(
            submissions=dict(events.submissions),
            cancels=frozenset(events.cancels),
            streams={task_id: _stream(redis, keys.events(task_id)) for task_id in tasks},
            client_events={
                task_id: tuple(events) for task_id, events in events.client_events.items()
            },
            client_errors=tuple(events.client_errors),
            records=_records(redis, keys, tasks),
            celery_results=_celery_results(redis, tasks),
            claims=tuple(logs.claims),
            takeovers=tuple(unexplained(events.timeline, logs.owner, logs.deaths, applied)),
            refused_writes=frozenset(refused_writes(events.timeline, applied)),
            reference=reference,
            objects=found,
            manifests=manifests,
            replies=_replies(redis),
            unpublished=tuple(wire.unpublished(deployment.redis.url)),
            keys=frozenset(key.decode(errors="replace") for key in redis.scan_iter(count=1000)),
            left=left(redis, keys),
            others=others,
        )


def refused_writes(
    timeline: Mapping[str, Sequence[StreamEntry]], applied: Sequence[AppliedFault]
) -> Iterator[str]:
    """Tasks that failed while a store refused conditional writes, by an error that says so."""
    spans = [
        (each.at_s, each.at_s + each.fault.lasts_s + GRACE_S)
        for each in applied
        if each.fault.kind is FaultKind.S3_CONDITIONS
    ]
    for task_id, stream in timeline.items():
        for entry in stream:
            if isinstance(entry.event, Failed) and (
                entry.event.error.code == ErrorCode.STORAGE_UNAVAILABLE
                and "SAG_S3_CONDITIONAL_WRITES" in entry.event.error.message
                and any(begin_s <= entry.seen_at_s <= end_s for begin_s, end_s in spans)
            ):
                yield task_id


def left(redis: Redis, keys: Keys) -> dict[str, int]:
    """The number of entries by key, of keys that are empty when all tasks have ended."""
    lists = {name: redis.llen(name) for name in messages.LISTS}
    return lists | {
        messages.HELD: redis.hlen(messages.HELD),
        messages.HELD_INDEX: redis.zcard(messages.HELD_INDEX),
        keys.open: redis.zcard(keys.open),
        keys.pushes: redis.zcard(keys.pushes),
    }


def pictures(objects: Mapping[str, str], folder: str) -> tuple[str, ...]:
    """sha256 of the pictures in a task's folder, in the order of their numbers."""
    numbers = (
        int(key[len(folder) : -len(".png")])
        for key in objects
        if key.startswith(folder) and key.endswith(".png")
    )
    return tuple(objects[f"{folder}{number}.png"] for number in sorted(numbers))


def _stream(redis: Redis, key: str) -> tuple[StreamEntry, ...]:
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", redis.xrange(key))
    return tuple(parse_entry(number, fields) for number, fields in entries)


def _records(redis: Redis, keys: Keys, tasks: list[str]) -> dict[str, Record]:
    found = {}
    for task_id in tasks:
        reply = redis.hmget(keys.task(task_id), "status", "outcome")
        status, outcome = cast("list[bytes | None]", reply)
        if status is not None:
            found[task_id] = Record(status.decode(), json.loads(outcome or b"null"))
    return found


def _celery_results(redis: Redis, tasks: list[str]) -> dict[str, CeleryResult]:
    found = {}
    for task_id in tasks:
        reply = cast("bytes | None", redis.get(f"celery-task-meta-{task_id}"))
        if reply is not None:
            meta = json.loads(reply)
            found[task_id] = CeleryResult(meta["status"], meta["result"])
    return found


def _replies(redis: Redis) -> dict[str, tuple[Event, ...]]:
    """The events in the queue of pushes, which no application consumes."""
    found: dict[str, tuple[Event, ...]] = {}
    for entry in cast("list[bytes]", redis.lrange(REPLY_TO["queue"], 0, -1)):
        _, kwargs, _ = json.loads(b64decode(json.loads(entry)["body"]))
        event = EVENT.validate_python(kwargs["event"])
        found[event.task_id] = (*found.get(event.task_id, ()), event)
    return found


def objects(deployment: Deployment) -> tuple[dict[str, str], dict[str, Any]]:
    """sha256 of every object in the bucket, and every manifest as JSON, by key.

    Without those of the tasks that waited below the schedule's, which may be thousands.
    """
    client = s3_client(deployment)
    found: dict[str, str] = {}
    manifests: dict[str, Any] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", []):
            key = entry["Key"]
            if key.endswith("/") or key.startswith(f"{PREFIX}/{OTHERS}"):
                continue  # the first is SeaweedFS's entry for a folder
            data = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            found[key] = hashlib.sha256(data).hexdigest()
            if key.endswith("/manifest.json"):
                manifests[key] = json.loads(data)
    return found, manifests


def s3_client(deployment: Deployment) -> Any:
    """A client for the bucket, without the proxy."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=deployment.s3.endpoint_url,
        aws_access_key_id=deployment.s3.access_key,
        aws_secret_access_key=deployment.s3.secret_key,
        region_name="us-east-1",
    )


def shas(event: Event) -> tuple[str, ...]:
    """sha256 of the pictures that a `succeeded` event names."""
    return tuple(i.sha256 for i in event.result.images) if isinstance(event, Succeeded) else ()
