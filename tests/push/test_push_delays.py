"""A push that is slow, invalid or unreadable delays no other."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient, PushKind, PushState
from tests.push.pushes import COME_S, TARGET, end, settled
from worker.push import pusher

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.push.receiver import Receiver
    from worker.push.pusher import Pusher
    from worker.record.task_record import TaskRecord


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
