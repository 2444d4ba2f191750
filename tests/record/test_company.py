"""Who may denoise beside whom: alone means alone, and nobody waits for ever."""

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
    """Tasks that denoise until they are let go, and who was seen in there together."""

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
        """Have a task denoise."""
        self._leave[name] = threading.Event()
        return self._threads.submit(self._be, name, control or Control(), alone)

    def leave(self, name: str) -> None:
        """Have it end."""
        self._leave[name].set()

    def waits(self, alone: int = 1) -> bool:
        """Whether so many that want to be alone stand at the door."""
        return self._company._waiting_alone == alone

    def has_lost(self, name: str) -> bool:
        """Whether a task is not in there."""
        return name not in self.inside

    def close(self) -> None:
        """Let all go."""
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
    """An empty one."""
    made = Room()
    yield made
    made.close()


def test_those_who_mind_nobody_work_together(room: Room) -> None:
    """All at once, and one by one they leave."""
    for name in "abc":
        room.enter(name)
    until(lambda: room.inside == set("abc"))


def test_alone_is_alone(room: Room) -> None:
    """It waits until the others have left, and nobody joins it before it has ended."""
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


def test_newcomers_do_not_starve_one_that_waits_to_be_alone(room: Room) -> None:
    """Whoever comes after it goes in after it, however many there are and however long it waits."""
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


def test_two_that_are_to_be_alone_take_turns(room: Room) -> None:
    """One after the other, and then the rest together."""
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
def test_one_that_waits_can_be_stopped(room: Room, reason: Stop, alone: bool) -> None:
    """A drain or a cancel is heard at the door, and those who stood behind go in."""
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
    """It passes at the door as it does in there."""
    room.enter("before")
    until(lambda: room.inside == {"before"})
    waiting = room.enter("waits", alone=True, control=Control(deadline_s=0.0))
    with pytest.raises(JobStopped) as stopped:
        waiting.result(WAIT_S)
    assert stopped.value.reason is Stop.EXPIRED


def test_one_that_fails_makes_room() -> None:
    """An error in there leaves nobody outside."""
    company = ExclusiveAttempt()
    for alone in (True, False, True):
        with pytest.raises(ValueError, match="broken"), company.enter(Control(), alone=alone):
            raise ValueError("broken")
    with company.enter(Control(), alone=True):
        pass
