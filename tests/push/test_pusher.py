"""What is pushed, where to, and when: at least once, never before the end."""

from __future__ import annotations

import json
import re
import threading
import time
from base64 import b64decode
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from api_contracts import GenerationClient, PushKind, PushState, TaskStatus
from api_contracts.events import EVENT
from api_contracts.pushes import MESSAGE_ID_PATTERN
from api_contracts.schemas import examples
from tests.push.pushes import COME_S, TARGET, end, replies, settled
from tests.record.owners import ERROR, TTL_S, take
from tests.wire import faults
from worker.broker.held_messages import HeldMessages
from worker.record import push_queue
from worker.recovery.reconciler import Reconciler

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.push.receiver import Receiver
    from worker.push.pusher import Pusher
    from worker.record.task_record import TaskRecord


def test_an_end_is_pushed_to_queue_and_webhook(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis,
) -> None:  # fmt: skip
    """Queue and webhook get the terminal event of the stream; then nothing is due."""
    start()
    to = {"queue": TARGET.queue, "task": TARGET.task}
    end(client, records, "both", webhook=f"{hook.origin}/x", reply_to=to, metadata={"a": "b"})
    last = [*client.handle("both").events(timeout=COME_S)][-1]
    (message,) = hook.wait(1)
    assert EVENT.validate_json(message.body) == last
    assert message.headers["webhook-id"] == f"both:{last.seq}"
    assert re.search(MESSAGE_ID_PATTERN, message.headers["webhook-id"])
    for kind in PushKind:
        push = settled(client, "both", kind)
        assert (push.state, push.tries, push.error) == (PushState.DELIVERED, 1, None)
    found = [each for each in replies(redis) if each["headers"]["id"] == f"both:{last.seq}"]
    assert [each["headers"]["task"] for each in found] == [TARGET.task]
    assert faults("reply", found[0]) == []
    assert faults("end", json.loads(b64decode(found[0]["body"]))[1]["event"]) == []
    assert faults("end", json.loads(message.body)) == []
    assert redis.zcard(client.keys.pushes) == 0


def test_nothing_is_pushed_before_the_end(
    client: GenerationClient, records: TaskRecord, hook: Receiver, redis: Redis
) -> None:
    """Pushes are queued once, and only after the task has ended."""
    client.submit({"prompt": "x", "model": client.keys.namespace, "webhook": hook.origin}, "early")
    assert not records.pushes.add("early")
    claimed = take(records, "early")
    assert not records.pushes.add("early")
    assert client.handle("early").pushes() == {}
    records.finish(claimed, TaskStatus.CANCELLED, {"step": 0}, {"step": 0})
    assert records.pushes.add("early")
    assert not records.pushes.add("early")
    assert redis.zrange(client.keys.pushes, 0, -1) == [b"webhook:early"]


def test_a_task_without_pushes_makes_no_key(
    client: GenerationClient, records: TaskRecord, redis: Redis
) -> None:
    """A task without pushes, an unknown task and an invalid request make no key."""
    end(client, records, "plain")
    redis.hset(client.keys.task("odd"), mapping={"status": "failed", "request": "{no"})
    redis.hset(client.keys.task("deep"), mapping={"status": "failed", "request": "[" * 2000})
    for task_id in ("nobody", "odd", "deep"):
        assert not records.pushes.add(task_id)
    assert not redis.exists(client.keys.pushes)


def test_targets_that_are_no_longer_allowed_get_nothing(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis,
) -> None:  # fmt: skip
    """Targets that the settings do not allow are given up, whatever the record says."""
    start(retry_s=0.3, targets=())
    to = {"queue": "generate.default", "task": "sag.generate"}
    end(client, records, "bad", webhook="http://127.0.0.1:1/", reply_to=to)
    for kind, name in ((PushKind.WEBHOOK, "SAG_WEBHOOK_HOSTS"), (PushKind.REPLY_TO, "SAG_REPLY")):
        push = settled(client, "bad", kind)
        assert push.state is PushState.GIVEN_UP
        assert name in (push.error or "")
    assert replies(redis, "generate.default") == []


@pytest.mark.parametrize(
    "event",
    [
        b"{no",
        b"[" * 3000,
        json.dumps({**examples.EVENTS["succeeded"], "task_id": "another"}).encode(),
        json.dumps({**examples.EVENTS["progress"], "task_id": "forged"}).encode(),
        json.dumps({"x": "y" * push_queue.MAX_EVENT_BYTES}).encode(),
    ],
    ids=["no JSON", "deep", "another's", "no end", "large"],
)
def test_only_ends_are_pushed(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis, event: bytes,
) -> None:  # fmt: skip
    """Only a valid terminal event of the task is sent; anything else is given up."""
    end(client, records, "forged", webhook=hook.origin)
    redis.xadd(client.keys.events("forged"), {"event": event}, id="9-0")
    start()
    until_s = time.monotonic() + COME_S
    while redis.zcard(client.keys.pushes):
        assert time.monotonic() < until_s
        threading.Event().wait(0.02)
    redis.delete(client.keys.events("forged"))
    assert hook.messages == []
    push = client.handle("forged").pushes()[PushKind.WEBHOOK]
    assert (push.state, push.tries) == (PushState.GIVEN_UP, 0)
    assert redis.ttl(client.keys.task("forged")) > 0


def test_the_longest_end_is_pushed(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis,
) -> None:  # fmt: skip
    """The longest possible terminal event is delivered."""
    end(client, records, "long", webhook=hook.origin)
    event = {**examples.EVENTS["succeeded"], "task_id": "long", "seq": 9}
    texts = ["\U0001f34c" * 2000] * 64
    event["result"] = {
        **event["result"], "parameters": {"prompt": texts, "negative_prompt": texts}
    }  # fmt: skip
    redis.xadd(client.keys.events("long"), {"event": json.dumps(event)}, id="9-0")
    start()
    assert settled(client, "long", PushKind.WEBHOOK).state is PushState.DELIVERED
    redis.delete(client.keys.events("long"))


def test_celery_gets_a_task_like_any_other(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], redis_url: str
) -> None:
    """An application with default Celery settings receives the task with one argument."""
    start()
    end(client, records, "a.task", reply_to={"queue": TARGET.queue, "task": TARGET.task})
    assert settled(client, "a.task", PushKind.REPLY_TO).state is PushState.DELIVERED
    shop = Celery("shop", broker=redis_url, set_as_current=False)
    with shop.connection_for_read() as connection:
        queue = connection.SimpleQueue(TARGET.queue)
        found = {}
        while "a:task:3" not in found:
            message = queue.get(timeout=COME_S)
            args, kwargs, _ = message.payload
            found[message.headers["id"]] = (args, kwargs["event"]["type"])
            message.ack()
    assert found["a:task:3"] == ([], "cancelled")


def test_a_refusal_is_pushed(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver
) -> None:
    """A task of plain Celery that is refused is pushed, with its error."""
    request = json.dumps({"prompt": "x", "nope": 1, "webhook": hook.origin})
    assert records.finish(
        take(records, "refused", request=request), TaskStatus.FAILED, ERROR, {"error": ERROR}
    )
    records.close("refused")
    start()
    (message,) = hook.wait(1)
    assert EVENT.validate_json(message.body).model_dump(mode="json")["error"] == ERROR
    assert settled(client, "refused", PushKind.WEBHOOK).state is PushState.DELIVERED


def test_a_cancelled_waiting_task_is_pushed(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis,
) -> None:  # fmt: skip
    """The reconciler notes the pushes of a task that ended while its message waits."""
    wanted = {"prompt": "x", "model": client.keys.namespace, "webhook": hook.origin}
    client.submit(wanted, "waiting").cancel()
    reconciler = Reconciler(
        redis, client.keys, HeldMessages(redis), records.pushes, [], lease_s=0, record_ttl_s=TTL_S
    )
    start()
    reconciler.start()
    try:
        (message,) = hook.wait(1)
    finally:
        reconciler.close()
    assert EVENT.validate_json(message.body).type == "cancelled"
