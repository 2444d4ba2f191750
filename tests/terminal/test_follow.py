"""Following tasks whose events stop: the demo must not wait for a worker that is gone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from api_contracts import GenerationClient, GenerationError
from api_contracts.names import Keys
from worker.cli import demo, progress

if TYPE_CHECKING:
    from redis import Redis


@pytest.fixture(autouse=True)
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check every 50 ms."""
    monkeypatch.setattr(progress, "POLL_INTERVAL_S", 0.05)


def add(redis: Redis, namespace: str, task_id: str, seq: int, **event: object) -> None:
    """Append an event to a task's stream."""
    common = {"task_id": task_id, "seq": seq, "attempt": 1, "at": "2026-01-01T00:00:00Z"}
    keys = Keys(namespace)
    redis.xadd(keys.events(task_id), {"event": json.dumps(common | event)}, seq)
    redis.hset(keys.task(task_id), mapping={"status": "running", "seq": seq})


def test_a_reason_to_give_up_ends_every_task(redis: Redis, redis_url: str, namespace: str) -> None:
    """A reason to give up becomes the error of every task, also of one that is requeued again."""
    for task_id in ("a", "b"):
        add(redis, namespace, task_id, 1, type="requeued", reason="model_load_failed: no file")
    with GenerationClient(redis_url, namespace) as client:
        handles = [client.handle("a"), client.handle("b")]
        started_s = time.monotonic()
        results = progress.follow(
            handles, Console(file=io.StringIO()), give_up=lambda _: "the worker exited"
        )
    assert time.monotonic() - started_s < 5
    assert [str(each) for each in results] == ["the worker exited"] * 2


def test_events_before_the_end_are_still_read(redis: Redis, redis_url: str, namespace: str) -> None:
    """An event that a worker wrote just before it exited counts more than its exit."""
    error = {"code": "internal", "message": "it broke", "retryable": False}
    add(redis, namespace, "a", 1, type="started", model="m", device="cpu")

    def give_up(_silent_s: float) -> str:
        redis.delete(Keys(namespace).events("a"))
        add(redis, namespace, "a", 2, type="failed", error=error)
        return "the worker exited"

    with GenerationClient(redis_url, namespace) as client:
        (result,) = progress.follow(
            [client.handle("a")], Console(file=io.StringIO()), give_up=give_up
        )
    assert isinstance(result, GenerationError)
    assert "it broke" in str(result)


def test_the_demo_gives_up_on_an_exited_worker_and_on_silence() -> None:
    """The demo gives up on a silent worker after `MAX_SILENCE_S`, and on an exited one at once."""
    with subprocess.Popen([sys.executable, "-c", "input(); exit(70)"], stdin=-1) as worker:
        assert demo._give_up(worker, 0.0) is None
        assert demo._give_up(worker, demo.MAX_SILENCE_S) is None
        assert demo._give_up(worker, demo.MAX_SILENCE_S + 1) == "no event for 120 s"
        worker.communicate(b"\n")
        reason = demo._give_up(worker, 0.0)
    assert reason is not None
    assert "exited (status 70, its device or its model fails)" in reason
