"""Celery's own ways to end a task, `revoke`, `terminate`, `expires`, end it in the record, too."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from redis import Redis

from api_contracts import TaskStatus, names
from tests.service.conftest import END_S, ENDLESS, SHORT, check_events, wait_for, wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from celery.result import AsyncResult

    from api_contracts import TaskHandle
    from tests.conftest import Service

QUEUE = "generate.default"


@pytest.fixture(scope="module")
def one_slot(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A worker with one slot."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, slots="1") as worker,
    ):
        assert worker.client.submit(SHORT).result(END_S).images  # the model is loaded
        yield worker


@pytest.fixture
def caller(one_slot: Service) -> Iterator[Celery]:
    """A Celery application that imports nothing of this project."""
    app = Celery("caller", broker=one_slot.broker_url, backend=one_slot.broker_url)
    yield app
    app.close()


@pytest.fixture
def busy(one_slot: Service) -> Iterator[TaskHandle]:
    """The task that occupies the worker's only slot."""
    handle = one_slot.client.submit(ENDLESS)
    wait_for(handle, "progress")
    yield handle
    handle.cancel()
    wait_until(lambda: handle.status().is_terminal)
    with Redis.from_url(one_slot.broker_url) as redis:
        wait_until(lambda: redis.hlen(UNACKED) == 0)


def send(caller: Celery, **options: Any) -> AsyncResult:
    """Send a message whose task has no record yet."""
    task_id = f"raw-{uuid.uuid4().hex}"
    return caller.send_task(
        "sag.generate", kwargs={"request": SHORT}, queue=QUEUE, task_id=task_id, **options
    )


def revoke(app: Celery, task_id: str) -> None:
    app.control.revoke(task_id)


def revoke_and_terminate(app: Celery, task_id: str) -> None:
    app.control.revoke(task_id, terminate=True)


def terminate(app: Celery, task_id: str) -> None:
    app.control.terminate(task_id)


def revoke_a_list(app: Celery, task_id: str) -> None:
    app.control.revoke([task_id, "../odd", "unknown"])


def revoke_the_result(app: Celery, task_id: str) -> None:
    app.AsyncResult(task_id).revoke()


WAYS = [revoke, revoke_and_terminate, terminate, revoke_a_list, revoke_the_result]


@pytest.mark.parametrize("way", WAYS)
def test_a_running_task_ends(
    busy: TaskHandle, caller: Celery, way: Callable[[Celery, str], None]
) -> None:
    """A revoked task stops between steps, as by `cancel`; no signal reaches the worker."""
    way(caller, busy.task_id)
    wait_until(lambda: busy.status() is TaskStatus.CANCELLED)
    events = list(busy.events(timeout=END_S))
    check_events(events)
    assert events[-1].type == "cancelled"
    assert events[-1].step > 0
    with pytest.raises(TaskRevokedError):
        caller.AsyncResult(busy.task_id).get(timeout=END_S)


@pytest.mark.parametrize("way", [revoke, revoke_and_terminate])
def test_a_waiting_task_ends_at_once(
    one_slot: Service, busy: TaskHandle, caller: Celery, way: Callable[[Celery, str], None]
) -> None:
    """A waiting task ends with the revoke; its Celery result is written with its message."""
    waiting = one_slot.client.submit(SHORT)
    way(caller, waiting.task_id)
    wait_until(lambda: waiting.status() is TaskStatus.CANCELLED)
    assert busy.status() is TaskStatus.RUNNING
    busy.cancel()
    with pytest.raises(TaskRevokedError):
        caller.AsyncResult(waiting.task_id).get(timeout=END_S)
    assert [event.type for event in waiting.events(timeout=END_S)] == ["queued", "cancelled"]


def test_a_waiting_task_without_a_record_ends_when_it_is_delivered(
    one_slot: Service, busy: TaskHandle, caller: Celery
) -> None:
    """The revoke of a task that only has a message is kept until the message is delivered."""
    waiting = send(caller)
    revoke(caller, waiting.id)
    client = one_slot.client
    key = client.keys.task(waiting.id)
    wait_until(lambda: bool(client.redis.hexists(key, "cancel_requested")))
    busy.cancel()
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=END_S)
    assert client.handle(waiting.id).status() is TaskStatus.CANCELLED
    assert [event.type for event in client.handle(waiting.id).events(timeout=END_S)] == [
        "cancelled"
    ]


def test_a_task_whose_message_has_expired_is_not_started(
    one_slot: Service, busy: TaskHandle, caller: Celery
) -> None:
    """Celery's state is REVOKED, as for its own tasks; the record has one event, `expired`."""
    late = [
        send(caller, expires=0.2),
        send(caller, expires=datetime.now(UTC) + timedelta(seconds=0.2)),
    ]
    early = send(caller, expires=3600)
    began = one_slot.client.redis.time()[0]
    wait_until(lambda: one_slot.client.redis.time()[0] > began + 1)
    busy.cancel()
    for answer in late:
        with pytest.raises(TaskRevokedError, match="expired"):
            answer.get(timeout=END_S)
        assert answer.state == "REVOKED"
        handle = one_slot.client.handle(answer.id)
        assert handle.status() is TaskStatus.EXPIRED
        assert [event.type for event in handle.events(timeout=END_S)] == ["expired"]
    assert early.get(timeout=END_S)["images"]
    check_events(list(one_slot.client.handle(early.id).events(timeout=END_S)))


@pytest.mark.slow
def test_a_cancel_whose_message_is_lost_reaches_celerys_result(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The record ends at once; the reconciler sends the lost message again for the result."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, lease_s="2") as worker,
        Celery("caller", broker=url, backend=url) as app,
        Redis.from_url(url) as redis,
    ):
        waiting = worker.client.submit(SHORT | {"model": "unserved"}, "t")
        assert waiting.cancel() == "queued"
        redis.delete(*names.queue_lists("unserved"))
        # The next message goes to a queue that a worker serves.
        redis.hset(worker.client.keys.task("t"), "queue", QUEUE)
        with pytest.raises(TaskRevokedError):
            app.AsyncResult("t").get(timeout=END_S)
        wait_until(lambda: redis.zcard(worker.client.keys.open) == 0)
        assert [event.type for event in waiting.events(timeout=END_S)] == ["queued", "cancelled"]


def test_a_revoke_after_the_end_changes_nothing(one_slot: Service, caller: Celery) -> None:
    """A final state stays, in the record and in Celery's result."""
    handle = one_slot.client.submit(SHORT)
    assert handle.result(END_S).images
    revoke_and_terminate(caller, handle.task_id)
    after = one_slot.client.submit(SHORT)
    assert after.result(END_S).images
    assert handle.status() is TaskStatus.SUCCEEDED
    assert caller.AsyncResult(handle.task_id).get(timeout=END_S)["images"]
