"""Pushes in Redis and the threads that try them: at least once, never before the end."""

from __future__ import annotations

import json
import re
import threading
import time
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from pydantic import SecretStr

from api_contracts import GenerationClient, Push, PushKind, PushState, TaskStatus
from api_contracts.events import EVENT
from api_contracts.names import Keys
from api_contracts.pushes import MESSAGE_ID_PATTERN
from api_contracts.schemas import examples
from tests.push.receiver import Receiver, receiver
from tests.record.owners import ERROR, TTL_S, take, worker
from tests.wire import faults
from worker.broker.held_messages import HeldMessages
from worker.config.push_targets import ReplyTarget
from worker.errors import PushError
from worker.push import pusher
from worker.push.celery_replies import CeleryReplies
from worker.push.pusher import Pusher
from worker.push.webhooks import Webhooks
from worker.record import push_queue
from worker.recovery.reconciler import Reconciler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from worker.record.task_record import TaskRecord

SECRET = SecretStr("whsec_" + "c2Vj" * 8)
TARGET = ReplyTarget(queue="shop", task="shop.picture_done")
#: Longest wait for what must come, in seconds.
COME_S = 60.0


@pytest.fixture
def keys(namespace: str) -> Keys:
    """The keys of the test's namespace."""
    return Keys(namespace)


@pytest.fixture
def client(redis_url: str, namespace: str) -> Iterator[GenerationClient]:
    """A client in the test's namespace."""
    with GenerationClient(redis_url, namespace) as made:
        yield made


@pytest.fixture
def hook() -> Iterator[Receiver]:
    """A webhook receiver on this machine."""
    with receiver() as made:
        yield made


@pytest.fixture
def records(redis: Redis, keys: Keys) -> TaskRecord:
    """A worker's access to the records."""
    return worker(redis, keys, "first")


@pytest.fixture
def start(
    records: TaskRecord, redis_url: str, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Pusher]]:
    """Start a pusher with short pauses."""
    monkeypatch.setattr(pusher, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(pusher, "IDLE_POLL_S", 0.02)  # tests write what other processes leave
    monkeypatch.setattr(pusher, "FIRST_RETRY_S", 0.05)
    made: list[Pusher] = []

    def begin(retry_s: float = 60.0, targets: tuple[ReplyTarget, ...] = (TARGET,)) -> Pusher:
        webhooks = Webhooks([hook.origin], [SECRET], private_addresses=True)
        made.append(Pusher(records.pushes, CeleryReplies(targets, redis_url), webhooks, retry_s))
        made[-1].start()
        return made[-1]

    yield begin
    for each in made:
        each.close()


def end(
    client: GenerationClient,
    records: TaskRecord,
    task_id: str,
    *,
    closed: bool = True,
    **wanted: Any,
) -> None:
    """Submit a task and end it as a worker does; close the record if `closed`."""
    client.submit({"prompt": "x", "model": client.keys.namespace, **wanted}, task_id)
    claimed = take(records, task_id)
    assert records.finish(claimed, TaskStatus.CANCELLED, {"step": 3}, {"step": 3})
    records.close(task_id) if closed else records.pushes.add(task_id)


def settled(client: GenerationClient, task_id: str, kind: PushKind) -> Push:
    """The push, once it is delivered or given up."""
    until_s = time.monotonic() + COME_S
    while (push := client.handle(task_id).pushes()[kind]).state is PushState.WAITING:
        assert time.monotonic() < until_s
        threading.Event().wait(0.02)
    return push


def replies(redis: Redis, queue: str = TARGET.queue) -> list[dict[str, Any]]:
    """The messages in the other application's queue."""
    return [json.loads(entry) for entry in redis.lrange(queue, 0, -1)]


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


def test_a_failure_is_retried(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver
) -> None:
    """A failed push is retried until delivered, under one id; the record counts the tries."""
    hook.answers = [500, 503, 302]
    start()
    end(client, records, "again", webhook=hook.origin)
    messages = hook.wait(4)
    push = settled(client, "again", PushKind.WEBHOOK)
    assert (push.state, push.tries, push.error) == (PushState.DELIVERED, 4, None)
    assert push.first_at is not None
    assert push.last_at is not None
    assert push.first_at < push.last_at
    assert len({message.headers["webhook-id"] for message in messages}) == 1


def test_a_process_knows_when_its_own_pushes_are_due(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Retries come after their pauses, not with the rare look for pushes of other processes."""
    monkeypatch.setattr(pusher, "IDLE_POLL_S", 3600.0)
    hook.answers = [500, 503, 500]
    start()
    end(client, records, "first", webhook=hook.origin)
    end(client, records, "second", webhook=hook.origin)
    hook.wait(5)
    for task_id in ("first", "second"):
        assert settled(client, task_id, PushKind.WEBHOOK).state is PushState.DELIVERED


def test_pauses_grow_up_to_a_limit(records: TaskRecord) -> None:
    """Pauses are 1 s, 2 s, 4 s … at most 300 s, each up to half less."""
    made = Pusher(records.pushes, None, None, 1e9)  # type: ignore[arg-type]  # not used
    why = PushError("no")
    for tries, longest_s in ((0, 1), (1, 2), (5, 32), (50, 300), (10**6, 300)):
        due = push_queue.Due("t", PushKind.WEBHOOK, Push(state="waiting", tries=tries), "", 1, b"")
        _, again_s = made._after(due, why)
        assert again_s is not None
        assert longest_s / 2 <= again_s <= longest_s


def test_a_push_is_given_up_in_the_end(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis,
) -> None:  # fmt: skip
    """A push is given up after the time in the settings; the record has the error."""
    hook.answers = [500] * 1000
    start(retry_s=0.3)
    end(client, records, "never", webhook=hook.origin)
    push = settled(client, "never", PushKind.WEBHOOK)
    assert (push.state, push.error) == (PushState.GIVEN_UP, "answered 500")
    assert push.tries > 1
    assert redis.zcard(client.keys.pushes) == 0


def test_gone_is_not_retried(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver
) -> None:
    """Status 410 ends a push at once."""
    hook.answers = [410]
    start()
    end(client, records, "gone", webhook=hook.origin)
    push = settled(client, "gone", PushKind.WEBHOOK)
    assert (push.state, push.tries) == (PushState.GIVEN_UP, 1)


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


def test_a_push_of_a_dead_process_is_taken_over(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A push that was taken and never settled is due again after `HOLD_S`."""
    monkeypatch.setattr(push_queue, "HOLD_S", 0.3)
    end(client, records, "orphan", webhook=hook.origin)
    (taken,) = records.pushes.take(10)
    assert (taken.task_id, taken.target) == ("orphan", hook.origin)
    assert records.pushes.take(10) == []
    start()
    assert settled(client, "orphan", PushKind.WEBHOOK).state is PushState.DELIVERED


def test_a_slow_receiver_does_not_delay_others(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis,
) -> None:  # fmt: skip
    """A host that does not answer delays no push to another receiver."""
    start()
    with hook.came:  # no answer while it is held
        for number in range(3 * pusher.MAX_THREADS):
            end(client, records, f"slow-{number}", webhook=hook.origin)
        for number in range(5):
            to = {"queue": TARGET.queue, "task": TARGET.task}
            end(client, records, f"quick-{number}", reply_to=to)
            state = settled(client, f"quick-{number}", PushKind.REPLY_TO).state
            assert state is PushState.DELIVERED
        assert hook.messages == []
    hook.wait(3 * pusher.MAX_THREADS)


def test_a_push_without_a_thread_is_tried_later(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A push whose thread could not be started is tried later."""
    monkeypatch.setattr(push_queue, "HOLD_S", 0.05)
    real = threading.Thread.start
    refused: list[threading.Thread] = []

    def begin(self: threading.Thread) -> None:
        if self.name.startswith("push-") and len(refused) <= pusher.MAX_THREADS:
            refused.append(self)
            raise RuntimeError("can't start new thread")
        real(self)

    monkeypatch.setattr(threading.Thread, "start", begin)
    start()
    end(client, records, "threadless", webhook=hook.origin)
    assert settled(client, "threadless", PushKind.WEBHOOK).state is PushState.DELIVERED
    assert len(refused) == pusher.MAX_THREADS + 1


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


@pytest.mark.parametrize("url", ["http://[", "https://a]b/", "http://[:::]/", "", "x" * 9999])
def test_an_invalid_url_does_not_delay_others(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis, url: str,
) -> None:  # fmt: skip
    """The invalid URL of a refused request is given up and delays no other push."""
    end(client, records, "a-poison", webhook=hook.origin)
    wanted = json.dumps({"prompt": 5, "webhook": url})
    redis.hset(client.keys.task("a-poison"), "request", wanted)
    end(client, records, "victim", webhook=hook.origin)
    start()
    assert settled(client, "victim", PushKind.WEBHOOK).state is PushState.DELIVERED
    assert settled(client, "a-poison", PushKind.WEBHOOK).state is PushState.GIVEN_UP


def test_a_backlog_of_one_receiver_does_not_delay_others(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A backlog for one slow receiver does not delay others, and is not polled again and again."""
    monkeypatch.setattr(pusher, "SLOW_S", 0.0)
    backlog = 3 * pusher.BATCH_SIZE
    with hook.came:  # no answer while it is held
        for number in range(backlog):
            end(client, records, f"slow-{number}", webhook=hook.origin)
        end(client, records, "quick", reply_to={"queue": TARGET.queue, "task": TARGET.task})
        start()
        monkeypatch.setattr(pusher, "POLL_INTERVAL_S", 1000.0)
        assert settled(client, "quick", PushKind.REPLY_TO).state is PushState.DELIVERED
        soon = redis.time()[0] + 0.4 * pusher.SLOW_PAUSE_S
        assert redis.zcount(client.keys.pushes, "-inf", soon) == 0
        assert redis.zcard(client.keys.pushes) == backlog


@pytest.mark.parametrize("field", ["first_at", "tries"])
def test_a_hostile_state_is_not_retried_for_ever(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis, field: str,
) -> None:  # fmt: skip
    """A record's own times and counts can't make a push retry for ever."""
    end(client, records, "hostile", webhook=hook.origin)
    states = {
        "first_at": '{"state": "waiting", "first_at": "9999-12-31T00:00:00Z"}',
        "tries": '{"state": "waiting", "tries": ' + "9" * 400 + "}",
    }
    redis.hset(client.keys.task("hostile"), "push_webhook", states[field])
    hook.answers = [500] * 1000
    start(retry_s=0.2)
    until_s = time.monotonic() + COME_S
    while redis.zcard(client.keys.pushes):
        assert time.monotonic() < until_s
        threading.Event().wait(0.02)


def test_a_late_result_does_not_undo_a_delivery(
    client: GenerationClient, records: TaskRecord, hook: Receiver
) -> None:
    """A settled push stays settled."""
    end(client, records, "late", webhook=hook.origin)
    (due,) = records.pushes.take(1)
    records.pushes.settle(due, Push(state=PushState.DELIVERED, tries=1), None)
    records.pushes.settle(due, Push(state=PushState.WAITING, tries=1, error="late"), 5.0)
    assert client.handle("late").pushes()[PushKind.WEBHOOK].state is PushState.DELIVERED


@pytest.mark.parametrize("closed", ["before", "between", "after"])
@pytest.mark.parametrize("state", [PushState.DELIVERED, PushState.GIVEN_UP])
def test_a_record_lives_until_its_last_push_is_settled(
    client: GenerationClient, records: TaskRecord, redis: Redis, closed: str, state: PushState
) -> None:
    """Record and events get a time to live with the last settled push, never before."""
    keys = [client.keys.task("kept"), client.keys.events("kept")]
    to = {"queue": TARGET.queue, "task": TARGET.task}
    end(client, records, "kept", closed=closed == "before", webhook="https://a.b/", reply_to=to)
    assert [redis.ttl(key) for key in keys] == [-1, -1]
    one, other = records.pushes.take(2)
    records.pushes.settle(one, Push(state=PushState.WAITING, tries=1, error="late"), 0.001)
    for _ in range(2):  # the answer to the first was lost
        records.pushes.settle(one, Push(state=state, tries=2), None)
    if closed == "between":
        records.close("kept")
    assert [redis.ttl(key) for key in keys] == [-1, -1]
    records.pushes.settle(other, Push(state=state, tries=1), None)
    if closed == "after":
        assert [redis.ttl(key) for key in keys] == [-1, -1]
        records.close("kept")
    assert [TTL_S - 1 <= redis.ttl(key) <= TTL_S for key in keys] == [True, True]


def test_unreadable_pushes_do_not_delay_others(
    client: GenerationClient, records: TaskRecord, start: Callable[..., Pusher], hook: Receiver,
    redis: Redis,
) -> None:  # fmt: skip
    """Unknown kinds and unreadable records are removed and delay no other push."""
    end(client, records, "good", webhook=hook.origin)
    redis.set(client.keys.task("other-type"), "x")
    kinds = (b"nonsense", b"mail:good", b"webhook:nobody", b"webhook:other-type", b"\xff:x")
    for odd in kinds:
        redis.zadd(client.keys.pushes, {odd: 1.0})
    start()
    assert settled(client, "good", PushKind.WEBHOOK).state is PushState.DELIVERED
    until_s = time.monotonic() + COME_S
    while redis.zcard(client.keys.pushes):
        assert time.monotonic() < until_s
        threading.Event().wait(0.02)


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
