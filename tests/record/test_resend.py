"""What the reconciler sends again: what the client sent, unless the task was written to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from api_contracts import GenerationClient, TaskStatus, names
from tests.record.box import waiting
from tests.record.owners import lapse, opened, take, take_over
from tests.record.reconcilers import Sent, age, elected, lose

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord

pytestmark = pytest.mark.usefixtures("no_held_messages")


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_what_is_sent_is_what_a_client_sends(
    client: GenerationClient, redis: Redis, keys: Keys, priority: int
) -> None:
    """A message that is sent again equals the client's, also for a model not served here."""
    model = f"{keys.namespace}.rare"
    client.submit({"prompt": "x", "model": model, "priority": priority}, "t")
    (first,) = waiting(redis, model)
    lose(redis, model)
    age(redis, keys, "t")
    made = elected(redis, keys)
    made.walk()
    assert waiting(redis, model) == []  # its queue becomes known
    made.walk()
    assert waiting(redis, model) == [first]
    assert redis.llen(names.queue_lists(model)[priority]) == 1


@pytest.mark.parametrize("request_", ["[1, 2", "null", "5", '{"prompt": 5}', '{"priority": "x"}'])
def test_a_task_with_an_unreadable_request_is_sent_again_too(
    records: TaskRecord, redis: Redis, request_: str
) -> None:
    """A task with an unreadable request is sent again too, so that its next claim fails it."""
    take(records, "odd", request=request_, queue="generate.q")
    lapse(redis, records.keys, "odd")
    age(redis, records.keys, "odd")
    made = elected(redis, records.keys)
    for _ in range(2):  # its queue becomes known in the first
        made.walk()
    (message,) = waiting(redis, "q")
    lose(redis, "q")
    assert message["headers"]["id"] == "odd"
    assert message["properties"]["priority"] == 5


def purge(client: GenerationClient, url: str) -> int:
    """Do what `celery purge` does; returns the number of deleted messages."""
    queue = names.queue_name(client.keys.namespace)
    app = Celery("purger", broker=url, set_as_current=False)
    app.conf.update(
        broker_transport_options=names.TRANSPORT_OPTIONS,
        task_queues=[Queue(queue, Exchange(queue), routing_key=queue)],
    )
    number = int(app.control.purge())
    app.close()
    return number


def test_a_purge_ends_no_task(
    client: GenerationClient, redis: Redis, redis_url: str, sent: Sent
) -> None:
    """A purge ends no task: those submitted and not cancelled are sent again from the records."""
    ids = [f"t{number}" for number in range(5)]
    for task_id in ids:
        client.submit({"prompt": task_id, "model": client.keys.namespace}, task_id)
    client.handle("t4").cancel()
    assert purge(client, redis_url) == 5
    age(redis, client.keys, *ids[:4])
    elected(redis, client.keys, sent).walk()
    assert sorted(sent.ids) == ids[:4]
    assert {str(request["prompt"]) for _, request, _ in sent.letters} == set(ids[:4])


def claim_it(records: TaskRecord, other: TaskRecord) -> Any:
    return take(records, "task")


def requeue_it(records: TaskRecord, other: TaskRecord) -> Any:
    return records.requeue(take(records, "task"), {"reason": "r"}, counts=False)


def end_it(records: TaskRecord, other: TaskRecord) -> Any:
    return records.finish(take(records, "task"), TaskStatus.CANCELLED, {"step": 0}, {"step": 0})


def take_it_over(records: TaskRecord, other: TaskRecord) -> Any:
    take(records, "task")
    return take_over(other, "task")


def delete_it(records: TaskRecord, other: TaskRecord) -> Any:
    return records.redis.delete(records.keys.task("task"))


MEANWHILE = [claim_it, requeue_it, end_it, take_it_over, delete_it]


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_a_task_that_was_written_to_meanwhile_is_not_sent(  # noqa: PLR0913, PLR0917  # fixtures
    records: TaskRecord,
    other: TaskRecord,
    redis: Redis,
    task_id: str,
    sent: Sent,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[TaskRecord, TaskRecord], Any],
) -> None:
    """The condition is checked again in the step that sends it."""
    lose(redis, records.keys.namespace)
    age(redis, records.keys, task_id)
    made = elected(redis, records.keys, sent)
    lists = made._messages.lists
    with monkeypatch.context() as patch:
        patch.setattr(
            made._messages, "lists", lambda queues: [meanwhile(records, other), *lists(queues)][1:]
        )
        made.walk()
    assert sent.letters == []
    made.walk()
    assert sent.letters == []
    assert opened(redis, records.keys) == (set() if meanwhile is delete_it else {"task"})
