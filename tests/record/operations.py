"""Operations on one task by three workers, a client and a canceller, and what each must do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from api_contracts.names import MAX_MESSAGE_BYTES, Keys
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
    told,
)
from tests.record.reconcilers import hold
from worker.broker.held_messages import HeldMessages
from worker.job_control import Stop
from worker.record.claim import Claim, Ended, Held, WriteAnswer
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.lease import Lease

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts import GenerationClient, TaskStatus
    from worker.record.task_record import TaskRecord

MOST_ATTEMPTS = 3


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
