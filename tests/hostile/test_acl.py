"""Redis's ACL file: a worker process and its callers have the rights that they need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from api_contracts import GenerationClient, GenerationFailed, TaskStatus
from tests.hostile.guarded import ACL, SMALL, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Service
    from tests.hostile.guarded import Guarded

END_S = 120.0


@pytest.fixture(scope="module")
def worker(
    server: Guarded, start_service: Callable[..., AbstractContextManager[Service]]
) -> Iterator[Service]:
    """A worker process as user `worker`, in the namespace of the file."""
    hosts = {
        "webhook_hosts": '["http://127.0.0.1:9"]',
        "webhook_secrets": json.dumps(["whsec_" + "c2Vj" * 8]),
    }
    with start_service(server.url("worker"), namespace="sag", slots="4", **hosts) as running:
        yield running
    assert server.denials() == []


@pytest.fixture
def producer(server: Guarded) -> Iterator[GenerationClient]:
    """A client as user `producer`."""
    with GenerationClient(server.url("producer")) as made:
        yield made


def sag_worker(service: Service, command: str, url: str) -> subprocess.CompletedProcess[str]:
    """A command, run as the user in the URL."""
    return subprocess.run(
        [sys.executable, "-m", "worker", command],
        env={**service.environment, "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path),
             "SAG_BROKER_URL": url},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_everything_needed_is_allowed(
    server: Guarded, worker: Service, producer: GenerationClient
) -> None:
    """A worker and its callers do everything without a refusal by Redis."""
    with GenerationClient(server.url("watcher")) as watcher:
        webhook = {"webhook": "http://127.0.0.1:9/"}  # a private address: it is tried, and fails
        task = producer.submit(SMALL | {"preview_every": 1} | webhook, "ours")
        assert [event.type for event in watcher.handle("ours").events(timeout=END_S)][-1] == (
            "succeeded"
        )
        assert task.result(END_S).images[0].url
        until(lambda: any(push.tries for push in watcher.handle("ours").pushes().values()))
        assert watcher.status_many(["ours", "nobody"]) == {
            "ours": TaskStatus.SUCCEEDED, "nobody": None,
        }  # fmt: skip
        assert watcher.queue_depths() == producer.queue_depths() == {"default": 0}
    with pytest.raises(GenerationFailed):
        producer.submit({"prompt": "x", "scheduler": "nope"}, "refused").result(END_S)
    producer.handle("never-seen").cancel()
    running = producer.submit(
        SMALL | {"num_inference_steps": 150, "num_images_per_prompt": 4}, "long"
    )
    next(event for event in running.events(timeout=END_S) if event.type == "progress")
    assert running.cancel() is TaskStatus.RUNNING
    assert list(running.events(timeout=END_S))[-1].type == "cancelled"
    stranger = Celery("stranger", broker=server.url("producer"), backend=server.url("watcher"))
    answer = stranger.send_task(
        "sag.generate", kwargs={"request": SMALL}, queue="generate.default", priority=5
    )
    assert answer.get(timeout=END_S)["images"]
    assert sag_worker(worker, "health", server.url("worker")).returncode == 0
    assert server.denials() == []


def test_a_waiting_task_is_cancelled(server: Guarded, producer: GenerationClient) -> None:
    """A producer can cancel a waiting task."""
    task = producer.submit(SMALL | {"model": "nobodys"}, "waiting")
    assert task.cancel() is TaskStatus.QUEUED
    assert task.status() is TaskStatus.CANCELLED
    with server.connect("operator") as operator:
        operator.delete(*operator.keys("generate.nobodys*"), "sag:open")
    assert server.denials() == []


@pytest.mark.slow
def test_the_documented_raw_message_is_served(server: Guarded, worker: Service) -> None:
    """The script of `docs/calling.md` runs unchanged with the producer's rights."""
    page = (ACL.parents[2] / "docs" / "calling.md").read_text()
    (script,) = re.findall(r"```python\n(import base64, json, uuid\n.*?)```", page, re.DOTALL)
    url = server.url("producer")
    printed = subprocess.run(
        [sys.executable, "-c", script.replace("redis://127.0.0.1:6379/0", url)],
        capture_output=True, text=True, check=True, timeout=END_S,
    ).stdout  # fmt: skip
    assert printed.splitlines()[-1].endswith("succeeded")
    assert server.denials() == []


@pytest.mark.slow
def test_doctor_reports_what_it_may_not_check(server: Guarded, worker: Service) -> None:
    """`doctor` reports that it may not list keys, and checks everything else."""
    asked = sag_worker(worker, "doctor", server.url("worker"))
    assert asked.returncode == 0, asked.stderr
    assert asked.stderr.count("not checked") == 1
    assert "redis broker maxmemory-policy: noeviction" in asked.stderr
    assert {entry["object"] for entry in server.denials()} == {"scan"}
    server.forget_denials()
