"""The task ids of all messages, waiting and held, while both change."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import names
from api_contracts.message import task_message
from tests.record.box import letter, post, taken
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages

if TYPE_CHECKING:
    from redis import Redis


@pytest.fixture
def messages(redis: Redis) -> HeldMessages:
    """Held messages over an empty table."""
    redis.delete(UNACKED, UNACKED_INDEX)
    return HeldMessages(redis)


def found(messages: HeldMessages, *queues: str, count: int = 100) -> list[str]:
    """The ids of all messages in the queues and held, read as a walk reads them."""
    ids = []
    for name in [*messages.lists(queues), UNACKED]:
        cursor: bytes | int = 0
        while cursor != b"0":
            some = messages.ids(name, cursor, count)
            cursor = some.cursor
            ids += [each.decode() for each in some.ids]
    return ids


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
    assert sorted(found(messages, names.queue_name(namespace))) == sorted(
        [f"waits{each}" for each in names.PRIORITIES] + [f"held{each}" for each in range(3)]
    )
    redis.delete(*names.queue_lists("other"))


@pytest.mark.parametrize("number", [99, 100, 101, 1700])
def test_no_slice_is_skipped(
    messages: HeldMessages, redis: Redis, namespace: str, number: int
) -> None:
    """Each of many messages is found once, also where one slice ends and the next begins."""
    ids = [f"t{each}" for each in range(number)]
    flood(redis, namespace, *ids)
    assert sorted(found(messages, names.queue_name(namespace))) == sorted(ids)


def test_other_entries_are_skipped(messages: HeldMessages, redis: Redis, namespace: str) -> None:
    """Entries that are no messages are skipped."""
    odd = [b"", b"{", b"\xff", b"5", b"null", b"[]", b'"x"', b"[" * 5000, b'{"headers": null}']
    odd += [b'{"headers": {"id": 5}}', b'{"headers": {"id": null}}', b'{"headers": {"id": ["t"]}}']
    for each in odd:
        post(redis, namespace, "good")
        redis.lpush(names.queue_list(names.queue_name(namespace), 5), each)
    assert found(messages, names.queue_name(namespace)) == ["good"] * len(odd)


@pytest.mark.parametrize("number", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_what_moves_meanwhile_is_found(
    messages: HeldMessages,
    redis: Redis,
    namespace: str,
    number: int,
) -> None:
    """While messages come and are taken, none that was there all the time is missed."""
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
        queue = names.queue_name(namespace)
        rounds = [set(found(messages, queue, count=10)) for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert all(ids <= each for each in rounds)
    assert int(redis.hlen(UNACKED)) > 0


def test_a_message_taken_between_two_slices_is_found(
    messages: HeldMessages, redis: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is taken between two slices is found among the held ones."""
    ids = [f"t{each}" for each in range(30)]
    flood(redis, namespace, *ids)
    read = messages.ids

    def taking(name: str, cursor: bytes | int, count: int) -> Any:
        answer = read(name, cursor, count)
        if name != UNACKED:
            taken(redis, namespace, namespace)
            flood(redis, namespace, f"new{cursor!r}")
        return answer

    monkeypatch.setattr(messages, "ids", taking)
    assert set(ids) <= set(found(messages, names.queue_name(namespace), count=4))


@pytest.mark.parametrize("compact", [True, False])
def test_an_id_is_read_from_any_message(
    messages: HeldMessages, redis: Redis, namespace: str, compact: bool
) -> None:
    """An id is read from a client's message by its beginning, from any other by parsing it."""
    queue = names.queue_name(namespace)
    entry = task_message("a.b_c-1", '{"prompt": "\\"id\\": \\"x\\""}', queue, 0)
    if not compact:
        entry = json.dumps(dict(reversed(json.loads(entry).items())))
    redis.lpush(queue, entry)
    assert found(messages, queue) == ["a.b_c-1"]
    taken(redis, "owner", namespace)
    assert found(messages, queue) == ["a.b_c-1"]
