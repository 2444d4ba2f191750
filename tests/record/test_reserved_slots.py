"""Reserved slots: only urgent messages are taken when the common slots are full."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from celery.exceptions import Ignore
from celery.worker import state
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from api_contracts.names import (
    PRIORITIES,
    URGENT_PRIORITY,
    WAKE_PREFIX,
    queue_list,
    queue_name,
)
from tests.record.box import Box, ids_waiting, post, with_properties
from tests.record.mail import celery_takes, message
from tests.record.test_celery_task import call, task
from worker.app import create_app
from worker.broker.held_requests import held_requests, lowest_priority
from worker.execution.outcome import TaskDropped
from worker.execution.resolved_request import ResolvedRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery.worker.request import Request
    from redis import Redis

    from worker.config.settings import Settings
    from worker.execution.delivery import Delivery


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    """Celery's sets belong to the process, not to a worker."""
    state.reset_state()
    yield
    state.reset_state()


def reserve(box: Box) -> Request:
    """Take the next message, as Celery's consumer does: it is held before the next poll."""
    (taken,) = box.drain()
    request: Request = celery_takes(taken)
    state.task_reserved(request)
    return request


def takes_nothing(box: Box) -> bool:
    """Whether no poll of 0.2 s takes a message."""
    try:
        box.connection.drain_events(timeout=0.2)
    except TimeoutError:
        return True
    return False


def test_common_slots_full_take_urgent_messages_only(
    redis: Redis, redis_url: str, namespace: str
) -> None:
    """With all common slots taken a message of priority 0 to 2 is taken, one of 3 to 9 waits.

    It is taken when a common slot is free again; an urgent task does not occupy one.
    """
    box = Box(redis_url, namespace, lowest_priority=lambda: lowest_priority(2))
    post(redis, namespace, "a", "b", "c", priority=3)
    common = [reserve(box), reserve(box)]
    assert takes_nothing(box)
    assert ids_waiting(redis, namespace) == ["c"]
    post(redis, namespace, "urgent", priority=2)
    redis.lpush(f"{WAKE_PREFIX}{namespace}", 1)  # as a client does
    assert reserve(box).id == "urgent"
    assert takes_nothing(box)
    state.task_ready(common[0])
    common[0].message.ack()  # as Celery does, and wakes the worker
    assert reserve(box).id == "c"
    box.close()


@pytest.mark.parametrize(
    ("said", "in_list", "used"),
    [(5, 5, 5), (5, 3, 5), (9, 0, 9), (0, 4, 4), (None, 5, 5), ("x", 2, 2), (77, 1, 9), (-3, 6, 6)],
)
def test_a_message_says_its_priority(
    redis: Redis, redis_url: str, namespace: str, said: object, in_list: int, used: int
) -> None:
    """A message's own priority counts, but not before that of its list.

    Plain Celery puts 5 into list 3. Slots are counted by the list alone, so that no message can
    take a reserved slot and count as another one.
    """
    box = Box(redis_url, namespace)
    entry = with_properties(priority=said)
    redis.lpush(queue_list(queue_name(namespace), in_list), json.dumps(entry))
    (taken,) = box.drain()
    request = celery_takes(taken)
    assert request.delivery_info["priority"] == used
    state.task_reserved(request)
    assert lowest_priority(1) == (URGENT_PRIORITY if in_list > URGENT_PRIORITY else 9)
    box.close()


def test_the_engine_uses_the_priority_of_the_message(settings: Settings) -> None:
    """A task's rows have the priority of its message, whatever the request says."""
    seen: list[Delivery] = []

    class Recorder:
        def execute(self, delivery: Delivery) -> TaskDropped:
            """Drop the task."""
            seen.append(delivery)
            return TaskDropped("recorded")

    with pytest.raises(Ignore):
        call(task(Recorder()), "t", delivery_info={"routing_key": "q", "priority": 2})
    asked = replace(seen[0], request={"prompt": "x", "priority": 7})
    resolved = asked.resolve(settings)
    assert isinstance(resolved, ResolvedRequest)
    assert resolved.job({}).priority == 2


@examples(max_examples=60, deadline=None, derandomize=True)
@given(
    slots=st.integers(1, 4),
    reserved=st.integers(0, 3),
    moves=st.lists(st.sampled_from([*PRIORITIES, "end"]), max_size=30),
)
def test_common_tasks_never_occupy_more_than_their_slots(
    slots: int, reserved: int, moves: list[int | str]
) -> None:
    """Whatever arrives and ends, at most `slots` tasks of the priorities 3 to 9 are held.

    A message of a priority that may not be taken waits; one that may is taken at once.
    """
    state.reset_state()
    made: list[Request] = []
    for number, move in enumerate(moves):
        if move == "end":
            if made:
                state.task_ready(made.pop(0))
        elif len(held_requests()) < slots + reserved and move <= lowest_priority(slots):  # type: ignore[operator]  # a number here
            made.append(held(f"t{number}", int(move)))
        common = [each for each in made if each.delivery_info["priority"] > URGENT_PRIORITY]
        assert len(common) <= slots
        assert lowest_priority(slots) == (9 if len(common) < slots else URGENT_PRIORITY)
    state.reset_state()


def held(task_id: str, priority: int) -> Request:
    made = message(headers={"task": "sag.generate", "id": task_id})
    made.properties["priority"] = made.delivery_info["list_priority"] = priority
    request: Request = celery_takes(made)
    state.task_reserved(request)
    return request


def test_the_worker_has_a_thread_for_each_slot(settings: Settings) -> None:
    """Celery's pool has common and reserved slots; the transport asks for the common ones."""
    wide = settings.model_copy(update={"slots": 1, "reserved_slots": 3})
    app = create_app(wide, "owner")
    assert app.conf.worker_concurrency == 4
    ask = app.conf.broker_transport_options["lowest_priority"]
    assert ask() == 9
    kept = held("t", 5)
    assert ask() == URGENT_PRIORITY
    state.task_ready(kept)
    assert ask() == 9
