"""The task ids of all messages, waiting and held, while both change."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import names
from tests.record.box import letter, post, taken
from worker.broker import held_messages as module
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages

if TYPE_CHECKING:
    from redis import Redis


@pytest.fixture
def messages(redis: Redis) -> HeldMessages:
    """Held messages over an empty table."""
    redis.delete(UNACKED, UNACKED_INDEX)
    return HeldMessages(redis)


def flood(redis: Redis, model: str, *task_ids: str) -> None:
    """Send many messages at once."""
    entries = [json.dumps(letter(task_id)) for task_id in task_ids]
    redis.lpush(names.queue_list(names.queue_name(model), 5), *entries)


def test_every_list_and_every_holder_is_read(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """Messages of any priority, waiting or held, are found; those of other queues are not."""
    for priority in names.PRIORITIES:
        post(redis, namespace, f"waits{priority}", priority=priority)
    post(redis, "other", "elsewhere")
    for number in range(3):
        post(redis, "another", f"held{number}")
        taken(redis, f"owner{number}", "another")
    found = list(messages.ids([names.queue_name(namespace)]))
    assert sorted(found) == sorted(
        [f"waits{each}" for each in names.PRIORITIES] + [f"held{each}" for each in range(3)]
    )
    redis.delete(*names.queue_lists("other"))


@pytest.mark.parametrize("number", [module.SLICE - 1, module.SLICE, module.SLICE + 1, 1700])
def test_no_slice_is_skipped(
    messages: HeldMessages, redis: Redis, namespace: str, number: int
) -> None:
    """Each of many messages is found once, also where one slice ends and the next begins."""
    ids = [f"t{each}" for each in range(number)]
    flood(redis, namespace, *ids)
    assert sorted(messages.ids([names.queue_name(namespace)])) == sorted(ids)


def test_one_call_reads_few_bytes(
    messages: HeldMessages, redis: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call stops after a number of bytes, because Redis serves no other client meanwhile."""
    looked: list[int] = []
    script = messages._waiting

    def watched(**arguments: Any) -> Any:
        answer = script(**arguments)
        looked.append(answer[0])
        return answer

    monkeypatch.setattr(messages, "_waiting", watched)
    monkeypatch.setattr(module, "SLICE_BYTES", 100_000)
    for number in range(60):
        entry = letter(f"t{number}") | {"body": "x" * 10_000}
        redis.lpush(names.queue_list(names.queue_name(namespace), 5), json.dumps(entry))
    found = list(messages.ids([names.queue_name(namespace)]))
    assert sorted(found) == sorted(f"t{number}" for number in range(60))
    assert max(looked) <= 20
    assert sum(looked) == 60


def test_other_entries_are_skipped(messages: HeldMessages, redis: Redis, namespace: str) -> None:
    """Entries that are no messages are skipped."""
    odd = [b"", b"{", b"\xff", b"5", b"null", b"[]", b'"x"', b"[" * 5000, b'{"headers": null}']
    odd += [b'{"headers": {"id": 5}}', b'{"headers": {"id": null}}', b'{"headers": {"id": ["t"]}}']
    for each in odd:
        post(redis, namespace, "good")
        redis.lpush(names.queue_list(names.queue_name(namespace), 5), each)
    assert list(messages.ids([names.queue_name(namespace)])) == ["good"] * len(odd)


@pytest.mark.parametrize("number", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_what_moves_meanwhile_is_found(
    messages: HeldMessages,
    redis: Redis,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """While messages come and are taken, none that was there all the time is missed."""
    monkeypatch.setattr(module, "SLICE", 10)
    ids = {f"t{each}" for each in range(number)}
    flood(redis, namespace, *sorted(ids))
    stop = threading.Event()

    def traffic() -> None:
        each = 0
        while not stop.is_set():
            flood(redis, namespace, f"new{each}")
            taken(redis, f"owner{each % 5}", namespace)
            each += 1

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        rounds = [set(messages.ids([names.queue_name(namespace)])) for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert all(ids <= found for found in rounds)
    assert int(redis.hlen(UNACKED)) > 0


def test_a_message_taken_between_two_slices_is_found(
    messages: HeldMessages, redis: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is taken between two slices is found among the held ones."""
    monkeypatch.setattr(module, "SLICE", 4)
    ids = [f"t{each}" for each in range(30)]
    flood(redis, namespace, *ids)
    found: list[str] = []
    for task_id in messages.ids([names.queue_name(namespace)]):
        found.append(task_id)
        if len(found) % 2 and len(found) < 25:
            taken(redis, namespace, namespace)
            flood(redis, namespace, f"new{len(found)}")
    assert set(ids) <= set(found)
