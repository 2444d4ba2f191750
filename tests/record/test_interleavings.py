"""The state machine of a task under any order of three workers, a client and a canceller."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_contracts import GenerationClient, TaskStatus
from api_contracts.names import Keys
from api_contracts.redis_io.connection import connect
from tests.record.operations import World
from tests.record.owners import PROGRESS, TERMINAL, append, ask, lapse, record, take, told, worker
from worker.record.claim import Claim

if TYPE_CHECKING:
    from redis import Redis

ENDS = st.sampled_from([status for status in TaskStatus if status.is_terminal])
#: A write names one of the claims made so far, counted from the newest: 0 is the current one.
AGE = st.sampled_from([0, 0, 0, 1, 2, 3])
OPERATIONS = st.one_of(
    st.tuples(st.just("submit")),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("claim"), st.integers(0, 2)),
    st.tuples(st.just("lapse")),
    st.tuples(st.just("end_lease"), st.integers(0, 2)),
    st.tuples(st.just("renew"), AGE),
    st.tuples(st.just("save_checkpoint"), AGE),
    st.tuples(st.just("append"), AGE),
    st.tuples(st.just("requeue"), AGE, st.booleans()),
    st.tuples(st.just("finish"), AGE, ENDS),
    st.tuples(st.just("expire")),
    st.tuples(st.just("resend")),
    st.tuples(st.just("close")),
)


def run(redis_url: str, operations: list[tuple[Any, ...]]) -> None:
    """Run operations on a new task and check what holds after each."""
    keys = Keys(f"odd{uuid.uuid4().hex[:12]}")
    with connect(redis_url) as redis, GenerationClient(redis_url, keys.namespace) as client:
        owners = [worker(redis, keys, f"owner{number}") for number in range(3)]
        world = World(redis, keys, client, owners)
        for operation in operations:
            world.do(*operation)
            world.check()


#: Most begin with a running task, where most operations mean something.
BEGINNINGS = st.sampled_from([[], [("submit",)], [("submit",), ("claim", 0)], [("claim", 1)]])
ORDERS = st.builds(list.__add__, BEGINNINGS, st.lists(OPERATIONS, min_size=3, max_size=16))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(operations=ORDERS)
def test_no_order_of_operations_breaks_a_record(
    redis_url: str, operations: list[tuple[Any, ...]]
) -> None:
    """In any order of operations a record has one end, the last event, and gapless numbers."""
    run(redis_url, operations)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(operations=ORDERS)
def test_no_order_of_many_breaks_a_record(
    redis_url: str, operations: list[tuple[Any, ...]]
) -> None:
    """In any of many orders, drawn anew each time, a record has one end and gapless numbers."""
    run(redis_url, operations)


@pytest.mark.parametrize("seed", range(5))
def test_a_race_has_one_winner(
    redis: Redis, client: GenerationClient, task_id: str, seed: int
) -> None:
    """Two owners, a third claim and a canceller at once leave one end, the last event."""
    keys = client.keys
    first, second = worker(redis, keys, "first"), worker(redis, keys, "second")
    claim = take(first, task_id)
    gate = threading.Barrier(4)

    def finish() -> list[bool]:
        gate.wait()
        return [first.finish(claim, TaskStatus.SUCCEEDED, {}, {})]

    def take_over() -> list[bool]:
        gate.wait()
        lapse(redis, keys, task_id)
        taken = ask(second, task_id)
        if not isinstance(taken, Claim):
            return []
        return [second.finish(taken, TaskStatus.FAILED, {}, {})]

    def publish() -> list[bool]:
        gate.wait()
        for _ in range(5):
            append(first, claim, "progress", PROGRESS)
        return []

    def cancel() -> list[bool]:
        gate.wait()
        client.handle(task_id).cancel()
        return []

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(each) for each in (finish, take_over, publish, cancel)]
        won = [answer for future in running for answer in future.result()]
    types = [event["type"] for event in told(redis, keys, task_id)]
    assert won.count(True) == 1
    assert [each for each in types if each in TERMINAL] == types[-1:]
    assert types[-1] == record(redis, keys, task_id)["status"]
