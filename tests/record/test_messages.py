"""Held messages: their owners, their leases, and that each is requeued once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import names
from tests.record.box import ids_waiting, lapse_all, post, taken, waiting, with_properties
from tests.record.owners import now_s
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages, new_tag

if TYPE_CHECKING:
    from redis import Redis


@pytest.fixture
def messages(redis: Redis) -> HeldMessages:
    """Held messages over an empty table."""
    redis.delete(UNACKED, UNACKED_INDEX)
    return HeldMessages(redis)


def test_a_lease_is_renewed_from_now_on(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """A renewal starts a lease from now, which outlives the task's lease by a margin."""
    post(redis, namespace, "a", "b")
    tags = [taken(redis, namespace, namespace) for _ in range(2)]
    lapse_all(redis, namespace)
    assert set(messages.overdue()) == set(tags)
    before_s = now_s(redis)
    messages.renew(tags[:1], 50.0)
    ends_s = float(redis.zscore(UNACKED_INDEX, tags[0]) or 0)
    assert before_s <= ends_s - 50.0 <= now_s(redis)
    assert messages.overdue() == tags[1:]
    messages.renew([], 50.0)
    assert messages.overdue() == tags[1:]


def test_the_longest_overdue_come_first(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """The messages that are overdue the longest are returned first."""
    redis.zadd(UNACKED_INDEX, {f"x/{number}": 100.0 + number for number in range(300)})
    assert messages.overdue(3) == ["x/0", "x/1", "x/2"]
    assert len(messages.overdue()) == 100


def test_a_requeued_message_is_not_renewed(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """A late renewal does not hold a message that was requeued."""
    post(redis, namespace, "t")
    tag = taken(redis, namespace, namespace)
    assert messages.requeue(tag)
    messages.renew([tag], 50.0)
    assert redis.zscore(UNACKED_INDEX, tag) is None
    assert messages.held(tag) is None
    assert messages.held_by(namespace) == []
    assert not messages.requeue(tag)
    assert ids_waiting(redis, namespace) == ["t"]


def test_a_message_is_requeued_once(messages: HeldMessages, redis: Redis, namespace: str) -> None:
    """Of processes that requeue one message at once, one does and the others learn it."""
    number = 40
    post(redis, namespace, *map(str, range(number)))
    tags = [taken(redis, namespace, namespace) for _ in range(number)]
    lapse_all(redis, namespace)
    gate = threading.Barrier(4)

    def rescue(only_overdue: bool) -> int:
        gate.wait()
        return sum(messages.requeue(tag, only_overdue=only_overdue) for tag in tags)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(rescue, [True, False, True, False]))
    assert sum(done) == number
    assert sorted(ids_waiting(redis, namespace)) == sorted(map(str, range(number)))
    assert messages.held_by(namespace) == []


def test_a_renewal_in_between_keeps_a_message(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """A message that is renewed after it was found overdue is not requeued."""
    post(redis, namespace, "t")
    tag = taken(redis, namespace, namespace)
    lapse_all(redis, namespace)
    assert messages.overdue() == [tag]
    messages.renew([tag], 50.0)
    assert not messages.requeue(tag, only_overdue=True)
    assert messages.held_by(namespace) == [tag]
    assert ids_waiting(redis, namespace) == []
    assert messages.requeue(tag)
    assert ids_waiting(redis, namespace) == ["t"]


@pytest.mark.parametrize(("first", "order"), [(True, ["t", "a"]), (False, ["a", "t"])])
def test_a_message_is_requeued_at_either_end_of_its_list(
    messages: HeldMessages, redis: Redis, namespace: str, first: bool, order: list[str]
) -> None:
    """A requeued message goes before or behind its priority's others, marked as redelivered."""
    post(redis, namespace, "t", "a", priority=3)
    post(redis, namespace, "urgent", priority=2)
    post(redis, namespace, "idle", priority=4)
    sent = waiting(redis, namespace)[1]
    messages.requeue(taken(redis, namespace, namespace), first=first)
    assert ids_waiting(redis, namespace) == (
        ["urgent", *["t", "a"], "idle"] if first else ["urgent", "t", "a", "idle"]
    )
    tag = taken(redis, namespace, namespace)
    messages.requeue(taken(redis, namespace, namespace), first=first)
    assert ids_waiting(redis, namespace) == [*order, "idle"]
    messages.requeue(tag)
    back = next(each for each in waiting(redis, namespace) if each["headers"]["id"] == "t")
    assert back["properties"]["delivery_info"].pop("redelivered") is True
    assert back == sent


@pytest.mark.parametrize(
    ("priority", "place"),
    [(0, 0), (9, 9), (10, 9), (255, 9), (-1, 0), (None, 0), ("5", 0), (5.5, 0), ([5], 0)],
)
def test_any_priority_has_a_list(
    messages: HeldMessages, redis: Redis, namespace: str, priority: object, place: int
) -> None:
    """A message with an odd priority is requeued to a list that is polled."""
    queue = names.queue_name(namespace)
    redis.lpush(queue, json.dumps(with_properties(priority=priority)))
    assert messages.requeue(taken(redis, namespace, namespace))
    assert redis.llen(names.queue_list(queue, place)) == 1


@pytest.mark.parametrize(
    ("placed", "own", "place"), [(5, None, 5), (9, 0, 9), (3, 5, 5), (0, None, 0), (5, "0", 5)]
)
def test_a_requeued_message_goes_to_its_list(  # fixtures and cases
    messages: HeldMessages, redis: Redis, namespace: str, placed: int, own: object, place: int
) -> None:
    """A requeued message goes to the later of its own priority's list and the one it came from."""
    queue = names.queue_name(namespace)
    redis.lpush(names.queue_list(queue, placed), json.dumps(with_properties(priority=own)))
    assert messages.requeue(taken(redis, namespace, namespace))
    assert redis.llen(names.queue_list(queue, place)) == 1


def test_a_message_that_an_earlier_version_holds_is_requeued(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """A message that an earlier version holds is requeued by the message's own priority."""
    tag, queue = new_tag(namespace), names.queue_name(namespace)
    redis.hset(UNACKED, tag, json.dumps([with_properties(priority=7), "", queue]))
    redis.zadd(UNACKED_INDEX, {tag: 1.0})
    assert messages.requeue(tag)
    assert redis.llen(names.queue_list(queue, 7)) == 1


@pytest.mark.parametrize(
    "kept", [b"garbage", b'[5,"","q"]', b'["",""]', b"null", b"\xff", b"[" * 100_000]
)
def test_an_entry_that_is_no_message_is_dropped(
    messages: HeldMessages, redis: Redis, namespace: str, kept: bytes
) -> None:
    """A held entry that is no message is dropped."""
    tag = new_tag(namespace)
    redis.hset(UNACKED, tag, kept)
    redis.zadd(UNACKED_INDEX, {tag: 1.0})
    assert messages.held(tag) is None
    assert messages.ids(UNACKED, 0, 10).ids == []
    assert not messages.requeue(tag, only_overdue=True)
    assert not redis.exists(UNACKED, UNACKED_INDEX)


def test_a_tag_without_a_message_is_removed(messages: HeldMessages, redis: Redis) -> None:
    """A tag without a message is removed from the index."""
    redis.zadd(UNACKED_INDEX, {"x/1": 1.0})
    assert not messages.requeue("x/1", only_overdue=True)
    assert messages.overdue() == []


OWNERS = ["host:1", "host:12", "host:1/2", "h*", "h?st:1", "[h]ost:1", "host\\:1", "ho\\*", "host"]


def test_tags_are_matched_by_the_whole_owner(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """Tags are matched by the whole owner, whatever characters Redis's patterns know."""
    held: dict[str, Any] = {}
    for owner in OWNERS:
        post(redis, namespace, "a", "b")
        held[owner] = sorted(taken(redis, owner, namespace) for _ in range(2))
    assert {owner: messages.held_by(owner) for owner in OWNERS} == held
    assert messages.held_by("nobody") == []


def test_all_tags_of_an_owner_are_found(
    messages: HeldMessages, redis: Redis, namespace: str
) -> None:
    """All tags of an owner are found, also when the index has more than one slice."""
    tags = [new_tag(owner) for owner in ("mine", "others") for _ in range(1500)]
    redis.zadd(UNACKED_INDEX, dict.fromkeys(tags, 5.0))
    assert messages.held_by("mine") == sorted(tags[:1500])
