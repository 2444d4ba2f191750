"""The tasks that wait below those of the schedule: what is read of them, and their laws."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from api_contracts.names import Keys, queue_list
from tests.chaos import invariants, messages, other_laws, others
from tests.chaos.correct_run import EXHAUSTED, RESULT, correct
from tests.chaos.others import Other
from tests.chaos.submissions import LIST, QUEUE, garbage
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.chaos.evidence import Evidence
    from tests.chaos.stream_laws import Broken

REQUEST = {"prompt": "a red circle", "num_inference_steps": 2}
NOT_STORED = EXHAUSTED | {
    "code": "storage_unavailable", "message": "set SAG_S3_CONDITIONAL_WRITES",
}  # fmt: skip
OTHER_BYTES = RESULT | {"images": [{"sha256": "cc"}]}
SUCCEEDED = Other("succeeded", RESULT, ((1, "queued"), (2, "succeeded")), 0, is_open=False)
#: One that was given back and waits with two messages, two that succeeded (a second message of one
#: is left), and one whose pictures the store refused.
CORRECT = (
    Other("queued", None, ((1, "queued"), (2, "started"), (3, "requeued")), 2, is_open=True),
    SUCCEEDED,
    replace(SUCCEEDED, messages=1),
    Other("failed", NOT_STORED, ((1, "queued"), (2, "failed")), 0, is_open=False),
)
#: A law, how it is broken, and which of these is changed.
WRONG: list[tuple[Callable[..., Broken], str, int, dict[str, Any]]] = [
    (other_laws.others_are_kept, "no record", 0, {"status": None}),
    (other_laws.others_are_kept, "no message", 0, {"messages": 0}),
    (other_laws.others_are_kept, "not open", 0, {"is_open": False}),
    (other_laws.others_are_kept, "running", 0, {"status": "running"}),
    (
        other_laws.others_end_once, "twice", 1,
        {"events": ((1, "queued"), (2, "succeeded"), (3, "succeeded"))},
    ),
    (
        other_laws.others_end_once, "while it waits", 0,
        {"events": ((1, "queued"), (2, "cancelled"))},
    ),
    (other_laws.others_end_once, "no event", 1, {"events": ((1, "queued"),)}),
    (other_laws.others_end_once, "otherwise than its record", 1, {"status": "failed"}),
    (
        other_laws.others_end_once, "and goes on", 1,
        {"events": ((1, "queued"), (2, "succeeded"), (3, "progress"))},
    ),
    (
        other_laws.others_have_whole_streams, "a gap", 0,
        {"events": ((1, "queued"), (3, "started"))},
    ),
    (other_laws.others_have_whole_streams, "nothing", 0, {"events": ()}),
    (other_laws.others_make_one_picture, "other bytes", 2, {"outcome": OTHER_BYTES}),
    (other_laws.others_make_one_picture, "failed", 3, {"outcome": EXHAUSTED}),
    (other_laws.others_make_one_picture, "cancelled", 1, {"status": "cancelled"}),
]  # fmt: skip


def evidence_of(found: Mapping[str, Other]) -> Evidence:
    return replace(correct(), others=found)


def of(*each: Other) -> dict[str, Other]:
    return dict(zip(others.ids(len(each)), each, strict=True))


def test_others_that_wait_or_ended_once_break_no_law() -> None:
    """A waiting task may have two messages, and an ended one a message that is left."""
    assert invariants.check(evidence_of(of(*CORRECT))) == []


@pytest.mark.parametrize(
    ("law", "number", "changes"),
    [pytest.param(law, *rest, id=f"{law.__name__}: {name}") for law, name, *rest in WRONG],
)
def test_a_breach_is_found(
    law: Callable[..., Broken], number: int, changes: dict[str, Any]
) -> None:
    """A breach by one of the other tasks is reported under that law's name, for that task."""
    found = of(*CORRECT)
    task_id = others.ids(len(CORRECT))[number]
    found[task_id] = replace(found[task_id], **changes)
    broken = {(each.law, each.what) for each in invariants.check(evidence_of(found))}
    assert (law.__name__, task_id) in broken


def test_each_law_can_be_broken() -> None:
    """Every law of the others has an example that breaks it."""
    assert {law for law, *_ in WRONG} == set(other_laws.LAWS)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this module's, as all that it holds is read."""
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    """A connection to a Redis with 30 other tasks that wait, and nothing else."""
    with Redis.from_url(url, protocol=2) as client:
        client.flushall()
        others.submit(url, 30, REQUEST)
        yield client


def broken(redis: Redis) -> set[tuple[str, str]]:
    found = other_laws.others_are_kept(evidence_of(others.collect(redis, 30)))
    return set(found)


def test_what_waits_is_read(redis: Redis) -> None:
    """The other tasks wait in the list of the lowest priority, each with a record and a message."""
    assert redis.llen(queue_list(QUEUE, others.PRIORITY)) == 30
    assert broken(redis) == set()
    assert others.only_others_are_left(redis)


def test_a_lost_message_is_noticed(redis: Redis, url: str) -> None:
    """A task whose message the fault deletes breaks the law, and the run waits for its return."""
    lost = messages.delete(url, 0.5, random.Random(1))
    assert lost
    assert broken(redis) == {(task_id, "queued, without a message") for task_id in lost}
    assert not others.only_others_are_left(redis)


def test_a_lost_record_is_noticed(redis: Redis) -> None:
    """A task without a record, and one that is not among the open tasks, break the law."""
    gone, hidden, *_ = others.ids(30)
    redis.delete(Keys().task(gone))
    redis.zrem(Keys().open, hidden)
    assert broken(redis) == {
        (gone, "no record"), (hidden, "queued, and not among the open tasks"),
    }  # fmt: skip


def test_the_fault_looks_at_a_slice_of_a_long_list(
    redis: Redis, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault deletes at most a slice of the messages, wherever the slice begins."""
    monkeypatch.setattr(messages, "SLICE", 4)
    assert len(messages.delete(url, 1.0, random.Random(1))) == 4
    assert redis.llen(queue_list(QUEUE, others.PRIORITY)) == 26
    assert messages.count_by_task(redis).total() == 26


@pytest.mark.parametrize("of_run", ["message", "open task", "push"])
def test_the_run_waits_for_its_own(redis: Redis, of_run: str) -> None:
    """The run waits for a message, an open task or a push of its own."""
    match of_run:
        case "message":
            redis.lpush(LIST, garbage(0))
        case "open task":
            redis.zadd(Keys().open, {"c7-00001": 1.0})
        case _:
            redis.zadd(Keys().pushes, {"task:c7-00001": 1.0})
    assert not others.only_others_are_left(redis)


def test_only_what_is_theirs_is_dropped(redis: Redis) -> None:
    """`drop` removes the others' keys and messages; what is left keeps its order."""
    name = queue_list(QUEUE, others.PRIORITY)
    held = redis.rpop(name)
    assert isinstance(held, bytes)
    redis.hset(messages.HELD, mapping={"a": b"[" + held + b"]", "b": b"[]"})
    redis.zadd(messages.HELD_INDEX, {"a": 1.0, "b": 1.0})
    redis.lpush(name, garbage(1))
    redis.rpush(name, garbage(0))
    before = {b"sag:scratch"} & set(redis.keys())
    assert broken(redis) == set()  # the held message counts
    others.drop(redis, 30)
    assert redis.lrange(name, 0, -1) == [garbage(1), garbage(0)]
    assert redis.hkeys(messages.HELD) == redis.zrange(messages.HELD_INDEX, 0, -1) == [b"b"]
    left = {name.encode(), messages.HELD.encode(), messages.HELD_INDEX.encode()}
    assert set(redis.keys()) == left | before
