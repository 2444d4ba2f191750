"""Exclusive attempts: alone means alone, and no task waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.record.owners import until
from worker.execution.attempt import ExclusiveAttempt
from worker.job_control import Control, JobStopped, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 30


class Room:
    """Tasks that denoise until told to end, and which of them did so at the same time."""

    def __init__(self) -> None:
        self._company, self._threads = ExclusiveAttempt(), ThreadPoolExecutor(16)
        self._lock = threading.Lock()
        self._leave: dict[str, threading.Event] = {}
        self.inside: set[str] = set()
        self.order: list[str] = []
        self.seen: list[frozenset[str]] = []

    def enter(
        self, name: str, *, alone: bool = False, control: Control | None = None
    ) -> Future[None]:
        """Start a task on a thread."""
        self._leave[name] = threading.Event()
        return self._threads.submit(self._be, name, control or Control(), alone)

    def leave(self, name: str) -> None:
        """End a task."""
        self._leave[name].set()

    def waits(self, alone: int = 1) -> bool:
        """Whether this many exclusive tasks wait."""
        return self._company._waiting_alone == alone

    def has_lost(self, name: str) -> bool:
        """Whether a task is not denoising."""
        return name not in self.inside

    def close(self) -> None:
        """End all tasks."""
        for event in self._leave.values():
            event.set()
        self._threads.shutdown()

    def _be(self, name: str, control: Control, alone: bool) -> None:
        with self._company.enter(control, alone=alone):
            with self._lock:
                self.inside.add(name)
                self.order.append(name)
                self.seen.append(frozenset(self.inside))
            assert self._leave[name].wait(WAIT_S)
            with self._lock:
                self.inside.discard(name)


@pytest.fixture
def room() -> Iterator[Room]:
    """No task is denoising."""
    made = Room()
    yield made
    made.close()


def test_ordinary_attempts_run_together(room: Room) -> None:
    """Ordinary attempts all denoise at the same time."""
    for name in "abc":
        room.enter(name)
    until(lambda: room.inside == set("abc"))


def test_alone_is_alone(room: Room) -> None:
    """An exclusive attempt waits for the others to end, and none starts before it has ended."""
    for name in "ab":
        room.enter(name)
    until(lambda: len(room.inside) == 2)
    done = room.enter("last", alone=True)
    until(room.waits)
    room.leave("a")
    until(lambda: room.inside == {"b"})
    assert not done.done()
    room.leave("b")
    until(lambda: room.inside == {"last"})
    later = room.enter("c")
    room.leave("last")
    until(lambda: room.inside == {"c"})
    assert all(each == {"last"} for each in room.seen if "last" in each)
    assert not later.done()


def test_later_tasks_do_not_starve_an_exclusive_one(room: Room) -> None:
    """Tasks that come after an exclusive one start after it, however long it waits."""
    room.enter("before")
    until(lambda: room.inside == {"before"})
    room.enter("last", alone=True)
    until(room.waits)
    for name in "abcd":
        room.enter(name)
    room.leave("before")
    until(lambda: room.inside == {"last"})
    room.leave("last")
    until(lambda: room.inside == set("abcd"))
    assert room.order[:2] == ["before", "last"]


def test_two_exclusive_tasks_take_turns(room: Room) -> None:
    """Two exclusive tasks run one after the other, and then the others together."""
    room.enter("before")
    until(lambda: room.inside == {"before"})
    for name in ("last1", "last2"):
        room.enter(name, alone=True)
    until(lambda: room.waits(2))
    for name in "ab":
        room.enter(name)
    room.leave("before")
    for _ in range(2):
        until(lambda: len(room.inside) == 1 and "before" not in room.inside)
        (one,) = room.inside
        assert one.startswith("last")
        room.leave(one)
        until(partial(room.has_lost, one))
    until(lambda: room.inside == set("ab"))


@pytest.mark.parametrize("reason", [Stop.DRAINED, Stop.CANCELLED, Stop.SUPERSEDED])
@pytest.mark.parametrize("alone", [True, False])
def test_a_task_that_waits_can_be_stopped(room: Room, reason: Stop, alone: bool) -> None:
    """A drain, a cancel or a takeover ends a task's wait, and the tasks behind it start."""
    room.enter("before", alone=not alone)
    until(lambda: room.inside == {"before"})
    control = Control()
    waiting = room.enter("waits", alone=alone, control=control)
    if alone:
        until(room.waits)
    behind = room.enter("behind")
    control.request(reason)
    with pytest.raises(JobStopped) as stopped:
        waiting.result(WAIT_S)
    assert (stopped.value.reason, stopped.value.step) == (reason, 0)
    if not alone:
        room.leave("before")
    until(lambda: "behind" in room.inside)
    assert not behind.done()


def test_a_deadline_ends_the_wait(room: Room) -> None:
    """A deadline stops a waiting task as it stops a running one."""
    room.enter("before")
    until(lambda: room.inside == {"before"})
    waiting = room.enter("waits", alone=True, control=Control(deadline_s=0.0))
    with pytest.raises(JobStopped) as stopped:
        waiting.result(WAIT_S)
    assert stopped.value.reason is Stop.EXPIRED


def test_a_task_that_fails_makes_room() -> None:
    """After a task's error other tasks can start, exclusive or not."""
    company = ExclusiveAttempt()
    for alone in (True, False, True):
        with pytest.raises(ValueError, match="broken"), company.enter(Control(), alone=alone):
            raise ValueError("broken")
    with company.enter(Control(), alone=True):
        pass
