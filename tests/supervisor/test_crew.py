"""Who is started, started again, told to leave and killed, with the time passed in."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.supervisor.process_manager import ProcessManager

if TYPE_CHECKING:
    from collections.abc import Mapping

GRACE_S = 120.0


@dataclass
class Stub:
    """A process that ends when the test says so."""

    owner: str
    pid: int
    ended: int | None = None
    signals: list[signal.Signals] = field(default_factory=list)
    is_closed: bool = False

    def status(self) -> int | None:
        """None until the test ends it."""
        return self.ended

    def send_signal(self, number: signal.Signals) -> None:
        """Note the signal."""
        assert not self.is_closed
        self.signals.append(number)

    def close(self) -> None:
        """Only what has ended is let go."""
        assert self.ended is not None
        self.is_closed = True


class Yard:
    """A crew of stubs and all that it did."""

    def __init__(self, *names: str) -> None:
        self.started: list[Stub] = []
        self.died: list[tuple[str, float]] = []
        self.refusal: Exception | None = None
        self.crew = ProcessManager(
            {name: {"POST": name} for name in names},
            self.start,
            lambda owner, now_s: self.died.append((owner, now_s)),
            GRACE_S,
        )

    def start(self, name: str, environment: Mapping[str, str]) -> Stub:
        """Start a stub, or fail as the test wants it."""
        assert environment == {"POST": name}
        if self.refusal is not None:
            raise self.refusal
        stub = Stub(f"{name}:{len(self.started)}", len(self.started))
        self.started.append(stub)
        return stub

    @property
    def owners(self) -> list[str]:
        """Who was started, in order."""
        return [stub.owner for stub in self.started]


def test_each_post_gets_a_process() -> None:
    """The first look starts one process for each post, with its environment; the next none."""
    yard = Yard("a", "b")
    for now_s in (0.0, 0.1, 1000.0):
        yard.crew.step(now_s)
    assert yard.owners == ["a:0", "b:1"]
    assert not yard.crew.is_gone


def test_a_death_is_one_processs_own_affair() -> None:
    """Who dies is buried at once and started again after its pause; the other notices nothing."""
    yard = Yard("a", "b")
    yard.crew.step(0.0)
    yard.started[0].ended = -signal.SIGKILL
    yard.crew.step(5.0)
    assert yard.died == [("a:0", 5.0)]
    yard.crew.step(5.09)
    assert yard.owners == ["a:0", "b:1"]
    yard.crew.step(5.11)
    assert yard.owners == ["a:0", "b:1", "a:2"]
    assert yard.started[1].signals == []
    assert [stub.is_closed for stub in yard.started] == [True, False, False]
    assert yard.died == [("a:0", 5.0)]


def test_pauses_grow_for_each_post_by_itself() -> None:
    """The third death in a row waits 0.4 s; another's first waits 0.1 s; a long life forgives."""
    yard = Yard("a", "b")
    yard.crew.step(0.0)
    for death, (now_s, next_s) in enumerate([(1.0, 1.1), (1.2, 1.4), (1.5, 1.9)]):
        newest = [stub for stub in yard.started if stub.owner.startswith("a")][-1]
        newest.ended = 1
        yard.crew.step(now_s)
        yard.crew.step(next_s - 0.01)
        assert len(yard.started) == 2 + death
        yard.crew.step(next_s + 0.001)
        assert len(yard.started) == 3 + death
    yard.started[1].ended = 1
    yard.crew.step(2.0)
    yard.crew.step(2.11)
    assert yard.owners[-1] == "b:5"
    yard.started[4].ended = 1
    yard.crew.step(62.0)
    yard.crew.step(62.11)
    assert yard.owners[-1] == "a:6"


@pytest.mark.parametrize("error", [ConnectionRefusedError("no server"), EOFError("it died")])
def test_a_start_that_fails_is_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A fork server that dies over a start costs a pause, not the supervisor."""
    yard = Yard("a", "b")
    yard.refusal = error
    yard.crew.step(0.0)
    assert "worker a could not be started" in caplog.text
    yard.refusal = None
    yard.crew.step(0.09)
    assert yard.owners == []
    yard.crew.step(0.1)
    assert yard.owners == ["a:0", "b:1"]
    assert yard.died == []


def test_refused_settings_end_all() -> None:
    """Status 2 asks the others to end, starts nobody again, and is what the crew ends with."""
    yard = Yard("a", "b")
    yard.crew.step(0.0)
    yard.started[0].ended = 2
    yard.crew.step(1.0)
    assert yard.started[1].signals == [signal.SIGTERM]
    assert not yard.crew.is_gone
    yard.started[1].ended = 0
    yard.crew.step(2.0)
    assert yard.crew.is_gone
    assert yard.crew.status == 2
    assert yard.died == [("a:0", 1.0), ("b:1", 2.0)]
    yard.crew.step(100.0)
    assert len(yard.started) == 2


def test_each_wish_to_leave_is_one_signal() -> None:
    """Every living process gets SIGTERM once for each wish; nobody is started; the status is 0."""
    yard = Yard("a", "b", "c")
    yard.crew.step(0.0)
    yard.started[2].ended = 1
    yard.crew.step(0.5)
    yard.crew.leave(1.0)
    for now_s in (1.0, 1.1, 50.0):
        yard.crew.step(now_s)
    assert [stub.signals for stub in yard.started] == [[signal.SIGTERM], [signal.SIGTERM], []]
    yard.started[0].ended = -signal.SIGTERM
    yard.crew.step(51.0)
    yard.crew.leave(51.0)
    assert yard.started[0].signals == [signal.SIGTERM]
    assert yard.started[1].signals == [signal.SIGTERM] * 2
    yard.started[1].ended = 2
    yard.crew.step(52.0)
    assert yard.crew.is_gone
    assert yard.crew.status == 0
    assert len(yard.started) == 3


def test_who_does_not_leave_is_killed() -> None:
    """What lives `grace_s` after the first wish to leave is killed, once, and buried as any."""
    yard = Yard("a", "b")
    yard.crew.step(0.0)
    yard.crew.leave(10.0)
    yard.crew.leave(20.0)
    yard.started[0].ended = 0
    yard.crew.step(10.0 + GRACE_S - 0.1)
    assert signal.SIGKILL not in yard.started[1].signals
    for more_s in (0.0, 0.1, 100.0):
        yard.crew.step(10.0 + GRACE_S + more_s)
        assert yard.started[1].signals.count(signal.SIGKILL) == 1
    assert yard.started[1].signals == [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL]
    assert yard.started[0].signals == [signal.SIGTERM] * 2
    yard.started[1].ended = -signal.SIGKILL
    yard.crew.step(500.0)
    assert yard.crew.is_gone
    assert [owner for owner, _ in yard.died] == ["a:0", "b:1"]


def test_a_crew_can_leave_before_it_came() -> None:
    """A signal before the first start: nobody is started, and all have left."""
    yard = Yard("a")
    yard.crew.leave(0.0)
    yard.crew.step(0.0)
    assert yard.crew.is_gone
    assert yard.started == []


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.floats(0.05, 100.0), st.sampled_from("ab"), st.sampled_from([0, 1, 70, 75, -9])
        ),
        max_size=30,
    )
)
def test_whatever_dies_when_there_is_one_at_a_post(deaths: list[tuple[float, str, int]]) -> None:
    """Never two at one post, each death is told once, and a minute later all posts are filled."""
    yard, now_s = Yard("a", "b"), 0.0
    yard.crew.step(now_s)
    for after_s, name, status in deaths:
        now_s += after_s
        alive = [stub for stub in yard.started if stub.ended is None and stub.owner[0] == name]
        assert len(alive) <= 1
        for stub in alive:
            stub.ended = status
        yard.crew.step(now_s)
    yard.crew.step(now_s + 60.0)
    alive = [stub for stub in yard.started if stub.ended is None]
    assert sorted(stub.owner[0] for stub in alive) == ["a", "b"]
    dead = [stub.owner for stub in yard.started if stub.ended is not None]
    assert sorted(dead) == sorted(owner for owner, _ in yard.died)
