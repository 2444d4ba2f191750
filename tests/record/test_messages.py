"""Held messages: whose they are, how long they stay so, and how they go back, once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import names
from tests.record.box import ids_waiting, lapse_all, post, taken, waiting, with_properties
from tests.record.owners import now_s
from worker.broker.held_messages import MARGIN_S, UNACKED, UNACKED_INDEX, HeldMessages, new_tag

if TYPE_CHECKING:
    from redis import Redis


@pytest.fixture
def messages(redis: Redis) -> HeldMessages:
    """Over a book in which nothing stands yet."""
    redis.delete(UNACKED, UNACKED_INDEX)
    return HeldMessages(redis)


def test_a_lease_is_renewed_from_now_on(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """A renewed message is held for a lease from then; it outlives its task's lease by a margin."""
    post(redis, namespace, "a", "b")
    tags = [taken(redis, namespace, namespace) for _ in range(2)]
    lapse_all(redis, namespace)
    assert set(messages.overdue()) == set(tags)
    before_s = now_s(redis)
    messages.renew(tags[:1], 50.0)
    ends_s = float(redis.zscore(UNACKED_INDEX, tags[0]) or 0)
    assert before_s <= ends_s - 50.0 - MARGIN_S <= now_s(redis)
    assert messages.overdue() == tags[1:]
    messages.renew([], 50.0)
    assert messages.overdue() == tags[1:]


def test_the_longest_overdue_come_first(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """Those that wait longest for their recovery are told first, however many there are."""
    redis.zadd(UNACKED_INDEX, {f"x/{number}": 100.0 + number for number in range(300)})
    assert messages.overdue(3) == ["x/0", "x/1", "x/2"]
    assert len(messages.overdue()) == 100


def test_what_was_put_back_is_not_renewed(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """A renewal that comes late holds nothing: the message is somebody else's to take."""
    post(redis, namespace, "t")
    tag = taken(redis, namespace, namespace)
    assert messages.put_back(tag)
    messages.renew([tag], 50.0)
    assert redis.zscore(UNACKED_INDEX, tag) is None
    assert messages.held(tag) is None
    assert messages.held_by(namespace) == []
    assert not messages.put_back(tag)
    assert ids_waiting(redis, namespace) == ["t"]


def test_racing_rescuers_put_a_message_back_once(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """Two at once: one of them does it, the other hears that it did not, nothing is doubled."""
    number = 40
    post(redis, namespace, *map(str, range(number)))
    tags = [taken(redis, namespace, namespace) for _ in range(number)]
    lapse_all(redis, namespace)
    gate = threading.Barrier(4)

    def rescue(only_overdue: bool) -> int:
        gate.wait()
        return sum(messages.put_back(tag, only_overdue=only_overdue) for tag in tags)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(rescue, [True, False, True, False]))
    assert sum(done) == number
    assert sorted(ids_waiting(redis, namespace)) == sorted(map(str, range(number)))
    assert messages.held_by(namespace) == []


def test_a_renewal_in_between_keeps_a_message(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """A holder that renews after it was found overdue, and before it is put back, keeps it."""
    post(redis, namespace, "t")
    tag = taken(redis, namespace, namespace)
    lapse_all(redis, namespace)
    assert messages.overdue() == [tag]
    messages.renew([tag], 50.0)
    assert not messages.put_back(tag, only_overdue=True)
    assert messages.held_by(namespace) == [tag]
    assert ids_waiting(redis, namespace) == []
    assert messages.put_back(tag)
    assert ids_waiting(redis, namespace) == ["t"]


@pytest.mark.parametrize(("first", "order"), [(True, ["t", "a"]), (False, ["a", "t"])])
def test_it_goes_before_or_behind_the_others_of_its_priority(
    messages: HeldMessages, redis: Redis, namespace: str, first: bool, order: list[str]
) -> None:
    """One whose holder died had its turn and goes first; it is marked, otherwise as it was."""
    post(redis, namespace, "t", "a", priority=3)
    post(redis, namespace, "urgent", priority=2)
    post(redis, namespace, "idle", priority=4)
    sent = waiting(redis, namespace)[1]
    messages.put_back(taken(redis, namespace, namespace), first=first)
    assert ids_waiting(redis, namespace) == (
        ["urgent", *["t", "a"], "idle"] if first else ["urgent", "t", "a", "idle"]
    )
    tag = taken(redis, namespace, namespace)
    messages.put_back(taken(redis, namespace, namespace), first=first)
    assert ids_waiting(redis, namespace) == [*order, "idle"]
    messages.put_back(tag)
    back = next(each for each in waiting(redis, namespace) if each["headers"]["id"] == "t")
    assert back["properties"]["delivery_info"].pop("redelivered") is True
    assert back == sent


@pytest.mark.parametrize(
    ("priority", "place"),
    [(0, 0), (9, 9), (10, 9), (255, 9), (-1, 0), (None, 0), ("5", 0), (5.5, 0), ([5], 0)],
)
def test_an_odd_priority_has_a_list_all_the_same(
    messages: HeldMessages, redis: Redis, namespace: str, priority: object, place: int
) -> None:
    """A message goes back to where it is looked for, whatever it says of its priority."""
    queue = names.queue_name(namespace)
    redis.lpush(queue, json.dumps(with_properties(priority=priority)))
    assert messages.put_back(taken(redis, namespace, namespace))
    assert redis.llen(names.queue_list(queue, place)) == 1


@pytest.mark.parametrize(
    "kept", [b"garbage", b'[5,"","q"]', b'["",""]', b"null", b"\xff", b"[" * 100_000]
)
def test_what_is_no_message_does_not_come_back(
    messages: HeldMessages, redis: Redis, namespace: str, kept: bytes
) -> None:
    """It is dropped, and those behind it are rescued."""
    tag = new_tag(namespace)
    redis.hset(UNACKED, tag, kept)
    redis.zadd(UNACKED_INDEX, {tag: 1.0})
    assert messages.held(tag) is None
    assert list(messages.ids([])) == []
    assert not messages.put_back(tag, only_overdue=True)
    assert not redis.exists(UNACKED, UNACKED_INDEX)


def test_an_entry_without_a_message_leaves_the_index(messages: HeldMessages, redis: Redis) -> None:
    """What is only in the index is taken out, and not looked at for ever."""
    redis.zadd(UNACKED_INDEX, {"x/1": 1.0})
    assert not messages.put_back("x/1", only_overdue=True)
    assert messages.overdue() == []


OWNERS = ["host:1", "host:12", "host:1/2", "h*", "h?st:1", "[h]ost:1", "host\\:1", "ho\\*", "host"]


def test_a_process_holds_only_its_own(messages: HeldMessages, redis: Redis, namespace: str) -> None:
    """Neither the beginning of a name nor a sign that means something to Redis finds another's."""
    held: dict[str, Any] = {}
    for owner in OWNERS:
        post(redis, namespace, "a", "b")
        held[owner] = sorted(taken(redis, owner, namespace) for _ in range(2))
    assert {owner: messages.held_by(owner) for owner in OWNERS} == held
    assert messages.held_by("nobody") == []


def test_a_process_with_much_is_seen_whole(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """More than one slice of the index: each of an owner's tags is told once."""
    tags = [new_tag(owner) for owner in ("mine", "others") for _ in range(1500)]
    redis.zadd(UNACKED_INDEX, dict.fromkeys(tags, 5.0))
    assert messages.held_by("mine") == sorted(tags[:1500])
