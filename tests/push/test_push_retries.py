"""A push that fails is tried again, with growing pauses, and given up in the end."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient, Push, PushKind, PushState
from tests.push.pushes import COME_S, end, settled
from worker.errors import PushError
from worker.push import pusher
from worker.push.pusher import Pusher
from worker.record import push_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.push.receiver import Receiver
    from worker.record.task_record import TaskRecord


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
