"""Clients and workers are upgraded apart: the previous version of each beside today's other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from api_contracts import GenerationFailed, TaskStatus
from api_contracts.events import EVENT
from tests.compatibility.conftest import as_previous_reads
from tests.service.conftest import (
    END_S,
    ENDLESS,
    PROMPT,
    SHORT,
    check_events,
    wait_for,
    wait_until,
)
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

SMALL = {"prompt": "a red circle", "num_inference_steps": 3, "seed": 5}
#: What a worker of each version logs of a checkpoint that it can't use.
UNUSABLE = ("starts anew, its checkpoint is of no use", "unusable checkpoint")
#: About 5 s on an idle core: still running when its worker is stopped.
LONG = SHORT | {"num_inference_steps": 100, "num_images_per_prompt": 2}
#: The previous version's client: submits, follows, cancels; prints each event as a line.
CLIENT = """
import json, sys
import api_contracts
from api_contracts import GenerationCancelled, GenerationClient, InvalidRequest
assert api_contracts.__file__.startswith(sys.argv[2]), api_contracts.__file__
with GenerationClient(sys.argv[1], sys.argv[3]) as client:
    made = client.submit({"prompt": "a red circle", "num_inference_steps": 3, "seed": 5}, "by-old")
    for event in made.events(timeout=100):
        print(event.model_dump_json())
    assert made.result(10).images[0].seed == 5
    long = client.submit(json.loads(sys.argv[4]), "cancelled-by-old")
    next(event for event in long.events(timeout=100) if event.type == "progress")
    assert long.cancel() == "running"
    try:
        long.result(100)
    except GenerationCancelled:
        assert client.status_many(["by-old", "cancelled-by-old"]) == {
            "by-old": "succeeded", "cancelled-by-old": "cancelled"
        }
    assert client.queue_depths() == {"default": 0}
"""


@pytest.fixture
def broker_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of the test's own."""
    with embedded.redis_server(tmp_path) as url:
        yield url


@pytest.fixture
def start_previous(
    previous: Path, start_service: Callable[..., AbstractContextManager[Service]]
) -> Callable[..., AbstractContextManager[Service]]:
    """Start a worker of the previous version, as `start_service`; its client is today's."""

    def start(broker_url: str, **extra: str) -> AbstractContextManager[Service]:
        command = [sys.executable, "-P", "-m", "worker", "run"]  # -P: not from this folder
        return start_service(broker_url, command, {"PYTHONPATH": str(previous)}, **extra)

    return start


def test_todays_worker_serves_the_previous_client(previous: Path, service: Service) -> None:
    """The previous client reads events, result, cancel and depths, and misses none of them."""
    namespace = service.environment["SAG_NAMESPACE"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", CLIENT,
         service.broker_url, str(previous), namespace, json.dumps(ENDLESS)],
        env={**os.environ, "PYTHONPATH": str(previous)},
        capture_output=True, text=True, check=False, timeout=END_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [EVENT.validate_json(line) for line in done.stdout.splitlines()]
    check_events(events)
    todays = service.client.handle("by-old").events(timeout=END_S)
    assert events == [as_previous_reads(event) for event in todays]


@pytest.mark.slow
def test_the_previous_worker_serves_todays_client(
    start_previous: Callable[..., AbstractContextManager[Service]], broker_url: str
) -> None:
    """The same with the roles exchanged; the previous worker names a field it does not know."""
    with start_previous(broker_url) as old:
        (made,) = old.client.submit_many([SMALL], ["by-new"])
        check_events(list(made.events(timeout=END_S)))
        assert made.result(END_S).images[0].seed == SMALL["seed"]
        long = old.client.submit(ENDLESS, "cancelled-by-new")
        wait_for(long, "progress")
        assert long.cancel() is TaskStatus.RUNNING
        assert list(long.events(timeout=END_S))[-1].type == "cancelled"
        for task in (made, long):
            assert task.pushes() == {}
        app = Celery("caller", broker=broker_url, backend=broker_url, set_as_current=False)
        request = {"prompt": PROMPT, "of_a_later_version": 1}
        app.send_task(
            "sag.generate", kwargs={"request": request}, queue="generate.default", task_id="later"
        )
        with pytest.raises(GenerationFailed) as caught:
            app.AsyncResult("later").get(timeout=END_S)
        assert caught.value.error.code == "invalid_request"
        (fault,) = caught.value.error.details["faults"]
        assert (fault["where"], fault["limit"]) == ("of_a_later_version", "extra_forbidden")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("upgraded", [True, False], ids=["upgrade", "way back"])
def test_versions_take_over_from_each_other(
    start_previous: Callable[..., AbstractContextManager[Service]],
    start_service: Callable[..., AbstractContextManager[Service]],
    broker_url: str,
    upgraded: bool,
) -> None:
    """Tasks of a worker that is stopped continue from their checkpoints in the other version."""
    first, second = (start_previous, start_service) if upgraded else (start_service, start_previous)
    quick = {"drain_timeout_s": "0", "namespace": "both"}
    with first(broker_url, **quick) as leaving:
        tasks = [leaving.client.submit(LONG | {"seed": number}) for number in range(3)]
        for task in tasks:
            wait_for(task, "progress")
    with second(broker_url, **quick) as coming:
        for task in tasks:
            events = list(coming.client.handle(task.task_id).events(timeout=END_S))
            check_events(events)
            starts = [event for event in events if event.type == "started"]
            assert [event.resumed_from_step is not None for event in starts] == [False, True]
            assert events[-1].type == "succeeded"
        wait_until(lambda: coming.client.redis.zcard(coming.client.keys.open) == 0)
        # The event has the step of the task's record; whether the engine resumed is in the log.
        log = coming.log.read_text()
        assert [line for line in log.splitlines() if any(each in line for each in UNUSABLE)] == []
