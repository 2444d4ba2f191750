"""The state machine of a task under any order of three workers, a client and a canceller."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_contracts import GenerationClient, TaskStatus
from api_contracts.names import MAX_MESSAGE_BYTES, Keys
from api_contracts.redis_io.connection import connect
from api_contracts.redis_io.scripts import event_tail, load
from tests.record.owners import (
    LEASE_S,
    PROGRESS,
    TERMINAL,
    append,
    ask,
    lapse,
    opened,
    record,
    save_checkpoint,
    take,
    told,
    worker,
)
from tests.record.reconcilers import hold
from worker.broker.held_messages import HeldMessages
from worker.job_control import Stop
from worker.record.claim import Claim, Ended, Held, WriteAnswer
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.lease import Lease

if TYPE_CHECKING:
    from redis import Redis

    from worker.record.task_record import TaskRecord

MOST_ATTEMPTS = 3
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


@dataclass
class World:
    """One task, its workers, and the state that was observed last."""

    redis: Redis
    keys: Keys
    client: GenerationClient
    owners: list[TaskRecord]
    taken: list[Claim] = field(default_factory=list)
    #: Who has claimed it last, and whether that claim's lease has run out.
    owner: int = 0
    lapsed: bool = False
    end: tuple[str, str] | None = None
    last_status: str | None = None
    #: Whether Celery's result says so, too.
    closed: bool = False

    def do(self, name: str, *arguments: Any) -> None:
        """Run one operation and check its answer."""
        getattr(self, name)(*arguments)

    def submit(self) -> None:
        """A client submits, perhaps a second time."""
        self.client.submit({"prompt": "x", "model": self.keys.namespace}, "t")

    def cancel(self) -> None:
        """A client cancels; the answer is the status that the task had."""
        assert self.client.handle("t").cancel() == self.last_status

    def claim(self, number: int) -> None:
        """A worker claims; the answer must fit the state."""
        answer = ask(self.owners[number], "t", max_attempts=MOST_ATTEMPTS)
        match answer:
            case Ended(status=status):
                assert status == self.last_status
            case Held(owner=owner):
                assert (self.last_status, self.lapsed) == ("running", False)
                assert owner == f"owner{self.owner}"
            case Claim():
                assert self.last_status in (None, "queued") or (
                    self.last_status == "running" and self.lapsed
                )
                assert all(answer.fence > earlier.fence for earlier in self.taken)
                assert answer.attempt <= MOST_ATTEMPTS
                self.taken.append(answer)
                self.owner, self.lapsed = number, False

    def lapse(self) -> None:
        """The owner's lease runs out."""
        if self.last_status == "running":
            lapse(self.redis, self.keys, "t")
            self.lapsed = True

    def end_lease(self, number: int) -> None:
        """The lease of a dead process is ended; leases of others stay."""
        done = load(self.redis, "worker.record", "end_lease")(
            task=self.keys.task("t"), owner=f"owner{number}"
        )
        assert done == (self.last_status == "running" and number == self.owner)
        self.lapsed = self.lapsed or bool(done)

    def renew(self, age: int) -> None:
        """A current or former owner renews; a former one is superseded."""
        if age >= len(self.taken):
            return
        task = hold(tasks := ActiveTasks(), self.taken[-1 - age])
        Lease(
            self.redis, self.keys, tasks, HeldMessages(self.redis), list, LEASE_S, owner="o"
        ).renew()
        is_ours = age == 0 and self.last_status == "running"
        assert (task.control.asked() is not Stop.SUPERSEDED) == is_ours == bool(tasks.claimed())
        self.lapsed = self.lapsed and not is_ours

    def save_checkpoint(self, age: int) -> None:
        """A current or former owner saves a checkpoint."""
        if age < len(self.taken):
            answer = save_checkpoint(self.owners[0], self.taken[-1 - age], 7, b"state")
            is_ours = age == 0 and self.last_status == "running"
            assert (answer is not WriteAnswer.SUPERSEDED) == is_ours

    def expire(self) -> None:
        """The deadline passes and the reconciler looks."""
        if self.last_status is not None:
            self.redis.hset(self.keys.task("t"), "deadline_at", "1.0")
        done = load(self.redis, "worker.record", "expire")(
            task=self.keys.task("t"),
            events=self.keys.events("t"),
            open=self.keys.open,
            id="t",
            tail=event_tail("t", "expired", {"step": 0}),
        )
        assert done == (self.last_status == "queued")

    def resend(self) -> None:
        """The reconciler finds no message and resends one unless the task is held."""
        touched: Any = self.redis.zscore(self.keys.open, "t")
        found = load(self.redis, "worker.record", "resend")(
            task=self.keys.task("t"),
            open=self.keys.open,
            id="t",
            touched_at=touched or 0.0,
            max_bytes=MAX_MESSAGE_BYTES,
        )
        is_held = self.last_status == "running" and not self.lapsed
        assert (found is not None) == (touched is not None and not is_held)

    def close(self) -> None:
        """A worker has written Celery's result."""
        if self.last_status in TERMINAL:
            self.owners[0].close("t")
            self.closed = True

    def append(self, age: int) -> None:
        """A current or former owner appends progress."""
        if age < len(self.taken):
            answer = append(self.owners[0], self.taken[-1 - age], "progress", PROGRESS)
            is_ours = age == 0 and self.last_status == "running"
            assert (answer is not WriteAnswer.SUPERSEDED) == is_ours

    def requeue(self, age: int, counts: bool) -> None:
        """A current or former owner requeues the task."""
        if age < len(self.taken):
            wanted = self.redis.hexists(self.keys.task("t"), "cancel_requested")
            answer = self.owners[0].requeue(self.taken[-1 - age], {"reason": "r"}, counts=counts)
            if age == 0 and self.last_status == "running" and wanted:
                assert answer is WriteAnswer.CANCEL_REQUESTED
                assert record(self.redis, self.keys, "t")["status"] == "running"
            else:
                is_ours = age == 0 and self.last_status in ("running", "queued")
                assert answer is (WriteAnswer.WRITTEN if is_ours else WriteAnswer.SUPERSEDED)

    def finish(self, age: int, end: TaskStatus) -> None:
        """A current or former owner ends the task."""
        if age < len(self.taken):
            done = self.owners[0].finish(self.taken[-1 - age], end, {"by": end.value}, {})
            assert done == (age == 0 and self.last_status in ("running", end.value))

    def check(self) -> None:
        """Check what holds after every operation."""
        kept = record(self.redis, self.keys, "t")
        events = told(self.redis, self.keys, "t")
        types = [event["type"] for event in events]
        status = kept.get("status")
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert not TERMINAL.intersection(types[:-1])
        assert types[-1:] == [status] if status in TERMINAL else not TERMINAL & set(types)
        assert opened(self.redis, self.keys) == ({"t"} if status and not self.closed else set())
        if self.closed:
            assert not self.redis.exists(self.keys.checkpoint("t"))
        lives: Any = self.redis.ttl(self.keys.task("t"))
        assert (lives > 0) == self.closed
        if self.end is not None:
            assert (status, kept["outcome"]) == self.end
        elif status in TERMINAL:
            self.end = status, kept["outcome"]
        self.last_status = status


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
