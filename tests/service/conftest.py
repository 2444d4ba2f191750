"""What the service's tests look at a worker with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from tests.conftest import BUCKET

if TYPE_CHECKING:
    from collections.abc import Callable

    from api_contracts import Event, TaskHandle
    from tests.conftest import Service
    from worker.embedded import S3Server


#: Longest wait for anything that must come, in seconds.
END_S = 120.0


@pytest.fixture
def stranger(service: Service) -> Celery:
    """A Celery producer that has nothing of ours."""
    return Celery("stranger", broker=service.broker_url, backend=service.broker_url)


@pytest.fixture
def stored(s3: S3Server) -> Callable[[str], dict[str, bytes]]:
    """What lies below a prefix of the bucket, by key."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint_url)

    def read(prefix: str) -> dict[str, bytes]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
            if not key.endswith("/")
        }

    return read


def check_events(events: list[Event]) -> None:
    """The law of every stream: numbers without gaps, one terminal event, and it is the last."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.is_terminal for event in events].count(True) == 1
    assert events[-1].is_terminal
    assert len({event.task_id for event in events}) == 1


def wait_for(handle: TaskHandle, kind: str) -> None:
    """Return when the task's stream has an event of this kind."""
    for event in handle.events(timeout=END_S):
        if event.type == kind:
            return
        assert not event.is_terminal


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when `holds` does; fail after `END_S`."""
    deadline_s = time.monotonic() + END_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
