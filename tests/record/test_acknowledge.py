"""Acknowledging and rejecting a message: once, and only by the process that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.record.box import Box, ids_waiting, one, post, waiting
from worker.broker.held_messages import UNACKED, HeldMessages

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.message import Message
    from redis import Redis


def ack(message: Message) -> None:
    message.ack()


def drop(message: Message) -> None:
    message.reject()


def give_back(message: Message) -> None:
    message.reject(requeue=True)


@pytest.mark.parametrize("late", [ack, drop, give_back])
def test_a_late_acknowledgement_has_no_effect(
    boxes: Callable[..., Box],
    redis: Redis,
    namespace: str,
    late: Callable[[Message], None],
) -> None:
    """A late acknowledgement or rejection does not affect the next delivery."""
    first, second = boxes(f"{namespace}-1", namespace), boxes(f"{namespace}-2", namespace)
    post(redis, namespace, "t")
    lost = one(first.drain())
    assert HeldMessages(redis).requeue(lost.delivery_tag)
    kept = one(second.drain())
    assert kept.delivery_tag != lost.delivery_tag
    assert kept.delivery_info["redelivered"] is True
    late(lost)
    assert HeldMessages(redis).held_by(second.owner) == [kept.delivery_tag]
    assert HeldMessages(redis).held(kept.delivery_tag) is not None
    assert waiting(redis, namespace) == []
    kept.ack()
    assert HeldMessages(redis).held_by(second.owner) == []
    assert not redis.hexists(UNACKED, kept.delivery_tag)


@pytest.mark.parametrize("given", [True, False])
def test_an_ended_message_is_held_no_more(
    boxes: Callable[..., Box], redis: Redis, namespace: str, given: bool
) -> None:
    """A rejected message waits behind its priority's others; an acknowledged one is gone."""
    box = boxes(namespace)
    post(redis, namespace, "t", "next")
    post(redis, namespace, "last", priority=9)
    message = one(box.drain())
    message.reject(requeue=True) if given else message.ack()
    assert HeldMessages(redis).held_by(namespace) == []
    assert ids_waiting(redis, namespace) == ["next", *(["t"] if given else []), "last"]
    marks = [
        each["properties"]["delivery_info"].get("redelivered") for each in waiting(redis, namespace)
    ]
    assert marks == ([None, True, None] if given else [None, None])


@pytest.mark.parametrize(("late", "left"), [(ack, []), (drop, []), (give_back, ["t"])])
def test_a_message_of_a_closed_channel_can_be_ended(
    boxes: Callable[..., Box],
    redis: Redis,
    namespace: str,
    late: Callable[[Message], None],
    left: list[str],
) -> None:
    """A message is ended also after its channel was closed."""
    box = boxes(namespace)
    post(redis, namespace, "t")
    message = one(box.drain())
    box.channel.close()
    assert ids_waiting(redis, namespace) == []
    assert HeldMessages(redis).held_by(namespace) == [message.delivery_tag]
    late(message)
    assert HeldMessages(redis).held_by(namespace) == []
    assert ids_waiting(redis, namespace) == left
