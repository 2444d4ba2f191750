"""Celery's own ways to end a task: `revoke`, `terminate`, `expires`; the record knows of each."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from redis import Redis

from api_contracts import TaskStatus, names
from tests.service.conftest import END_S, check_events, wait_for, wait_until
from worker import embedded
from worker.broker.held_messages import UNACKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from celery.result import AsyncResult

    from api_contracts import TaskHandle
    from tests.conftest import Service

SHORT = {"prompt": "a large red circle on a white background", "num_inference_steps": 1}
LONG = SHORT | {"num_inference_steps": 150, "num_images_per_prompt": 4}
QUEUE = "generate.default"


@pytest.fixture(scope="module")
def one_slot(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A worker that does one task at a time."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, slots="1") as worker,
    ):
        yield worker


@pytest.fixture
def stranger(one_slot: Service) -> Iterator[Celery]:
    """A Celery application that has nothing of ours."""
    app = Celery("stranger", broker=one_slot.broker_url, backend=one_slot.broker_url)
    yield app
    app.close()


@pytest.fixture
def busy(one_slot: Service) -> Iterator[TaskHandle]:
    """The task that has the worker's only slot."""
    handle = one_slot.client.submit(LONG)
    wait_for(handle, "progress")
    yield handle
    handle.cancel()
    wait_until(lambda: handle.status().is_terminal)
    with Redis.from_url(one_slot.broker_url) as redis:
        wait_until(lambda: redis.hlen(UNACKED) == 0)


def send(stranger: Celery, **options: Any) -> AsyncResult:
    """Send a task without a record."""
    task_id = f"raw-{uuid.uuid4().hex}"
    return stranger.send_task(
        "sag.generate", kwargs={"request": SHORT}, queue=QUEUE, task_id=task_id, **options
    )


def revoke(app: Celery, task_id: str) -> None:
    app.control.revoke(task_id)


def revoke_and_terminate(app: Celery, task_id: str) -> None:
    app.control.revoke(task_id, terminate=True)


def terminate(app: Celery, task_id: str) -> None:
    app.control.terminate(task_id)


def revoke_a_list(app: Celery, task_id: str) -> None:
    app.control.revoke([task_id, "../odd", "nobody"])


def revoke_the_result(app: Celery, task_id: str) -> None:
    app.AsyncResult(task_id).revoke()


WAYS = [revoke, revoke_and_terminate, terminate, revoke_a_list, revoke_the_result]


@pytest.mark.parametrize("way", WAYS)
def test_a_running_task_ends(
    busy: TaskHandle, stranger: Celery, way: Callable[[Celery, str], None]
) -> None:
    """At a step, as by our own cancel; the worker lives, whatever signal was asked for."""
    way(stranger, busy.task_id)
    wait_until(lambda: busy.status() is TaskStatus.CANCELLED)
    events = list(busy.events(timeout=END_S))
    check_events(events)
    assert events[-1].type == "cancelled"
    assert events[-1].step > 0
    with pytest.raises(TaskRevokedError):
        stranger.AsyncResult(busy.task_id).get(timeout=END_S)


@pytest.mark.parametrize("way", [revoke, revoke_and_terminate])
def test_a_waiting_task_ends_at_once(
    one_slot: Service, busy: TaskHandle, stranger: Celery, way: Callable[[Celery, str], None]
) -> None:
    """While the slot is another's; its message is answered later, and Celery told then."""
    waiting = one_slot.client.submit(SHORT)
    way(stranger, waiting.task_id)
    wait_until(lambda: waiting.status() is TaskStatus.CANCELLED)
    assert busy.status() is TaskStatus.RUNNING
    busy.cancel()
    with pytest.raises(TaskRevokedError):
        stranger.AsyncResult(waiting.task_id).get(timeout=END_S)
    assert [event.type for event in waiting.events(timeout=END_S)] == ["queued", "cancelled"]


def test_a_waiting_task_without_a_record_ends_when_it_is_its_turn(
    one_slot: Service, busy: TaskHandle, stranger: Celery
) -> None:
    """Nobody knows of it but its message: the wish is kept until that is taken."""
    waiting = send(stranger)
    revoke(stranger, waiting.id)
    client = one_slot.client
    wanted = client.keys.task(waiting.id)
    wait_until(lambda: bool(client.redis.hexists(wanted, "cancel_requested")))
    busy.cancel()
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=END_S)
    assert client.handle(waiting.id).status() is TaskStatus.CANCELLED
    assert [event.type for event in client.handle(waiting.id).events(timeout=END_S)] == [
        "cancelled"
    ]


def test_a_task_whose_message_has_expired_is_not_begun(
    one_slot: Service, busy: TaskHandle, stranger: Celery
) -> None:
    """Celery says REVOKED, as it does of its own; the record says `expired`, in one event."""
    late = [
        send(stranger, expires=0.2),
        send(stranger, expires=datetime.now(UTC) + timedelta(seconds=0.2)),
    ]
    early = send(stranger, expires=3600)
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


def test_an_end_whose_message_is_lost_is_told_all_the_same(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The record's end stands at once; whoever waits for Celery's result hears of it, too."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, lease_s="2") as worker,
        Celery("stranger", broker=url, backend=url) as app,
        Redis.from_url(url) as redis,
    ):
        waiting = worker.client.submit(SHORT | {"model": "nobodys"}, "t")
        assert waiting.cancel() == "queued"
        redis.delete(*names.queue_lists("nobodys"))
        # Its queue is one that a worker serves, so that the next message finds one.
        redis.hset(worker.client.keys.task("t"), "queue", QUEUE)
        with pytest.raises(TaskRevokedError):
            app.AsyncResult("t").get(timeout=END_S)
        wait_until(lambda: redis.zcard(worker.client.keys.open) == 0)
        assert [event.type for event in waiting.events(timeout=END_S)] == ["queued", "cancelled"]


def test_what_is_revoked_after_its_end_stays(one_slot: Service, stranger: Celery) -> None:
    """An end is final, in the record and in Celery's result."""
    handle = one_slot.client.submit(SHORT)
    assert handle.result(END_S).images
    revoke_and_terminate(stranger, handle.task_id)
    after = one_slot.client.submit(SHORT)
    assert after.result(END_S).images
    assert handle.status() is TaskStatus.SUCCEEDED
    assert stranger.AsyncResult(handle.task_id).get(timeout=END_S)["images"]
