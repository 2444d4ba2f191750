"""What the tests of a running worker share: requests, waits, and views of streams and S3."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from tests import fork_server
from tests.conftest import BUCKET

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from api_contracts import Event, TaskHandle
    from tests.conftest import Service
    from worker.embedded import S3Server


#: Longest wait for anything that must come, in seconds.
END_S = 120.0
PROMPT = "a large red circle on a white background"
#: One step, and one row of the UNet call, as neither kind of guidance is on.
SHORT: dict[str, Any] = {
    "prompt": PROMPT, "num_inference_steps": 1, "guidance_scale": 1.0, "sag_scale": 0.0,
}  # fmt: skip
#: About 2 s on an idle core: still running when a test acts on the first progress event.
LONG = SHORT | {"num_inference_steps": 80}
#: Longer than any test waits: to be cancelled.
ENDLESS = SHORT | {"num_inference_steps": 150, "num_images_per_prompt": 4}


@pytest.fixture
def plain_celery(service: Service) -> Celery:
    """A Celery application that imports nothing of this project."""
    return Celery("plain", broker=service.broker_url, backend=service.broker_url)


@pytest.fixture
def stored(s3: S3Server) -> Callable[[str], dict[str, bytes]]:
    """Reads the bucket: the objects below a prefix, by key."""
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


def sag_worker(
    service: Service, *arguments: str, given: str = "", others: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a `sag-worker` command with the worker's settings and `others`; `given` is its input."""
    return fork_server.run(
        [sys.executable, "-m", "worker", *arguments],
        {**os.environ, **service.environment, **(others or {})},
        given=given,
        timeout_s=END_S,
    )


def check_events(events: list[Event]) -> None:
    """Assert what holds for each stream: numbers without gaps, one terminal event, the last."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.is_terminal for event in events].count(True) == 1
    assert events[-1].is_terminal
    assert len({event.task_id for event in events}) == 1


def wait_for(handle: TaskHandle, kind: str) -> None:
    """Return when the task's stream has an event of this type."""
    for event in handle.events(timeout=END_S):
        if event.type == kind:
            return
        assert not event.is_terminal


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds; fail after `END_S`."""
    deadline_s = time.monotonic() + END_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
