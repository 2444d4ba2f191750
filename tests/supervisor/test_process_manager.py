"""When a worker process is started, restarted, stopped and killed, with the time passed in."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.supervisor.stubs import GRACE_S, Bench
from worker import metrics


def test_each_slot_gets_one_process() -> None:
    """The first step starts one process for each slot, with its environment; later steps none."""
    bench = Bench("a", "b")
    for now_s in (0.0, 0.1, 1000.0):
        bench.manager.step(now_s)
    assert bench.owners == ["a:0", "b:1"]
    assert not bench.manager.has_stopped


def test_an_exit_affects_one_slot() -> None:
    """An exit is reported once and the slot filled after its pause; the other is left alone."""
    bench = Bench("a", "b")
    bench.manager.step(0.0)
    bench.started[0].exit_status = -signal.SIGKILL
    bench.manager.step(5.0)
    assert bench.exited == [("a:0", 5.0)]
    bench.manager.step(5.09)
    assert bench.owners == ["a:0", "b:1"]
    bench.manager.step(5.11)
    assert bench.owners == ["a:0", "b:1", "a:2"]
    assert bench.started[1].signals == []
    assert [stub.is_closed for stub in bench.started] == [True, False, False]
    assert bench.exited == [("a:0", 5.0)]


def test_pauses_grow_for_each_slot_by_itself() -> None:
    """A third exit in a row pauses 0.4 s, another slot's first 0.1 s; a minute's run resets it."""
    bench = Bench("a", "b")
    bench.manager.step(0.0)
    for exits, (now_s, next_s) in enumerate([(1.0, 1.1), (1.2, 1.4), (1.5, 1.9)]):
        newest = [stub for stub in bench.started if stub.owner.startswith("a")][-1]
        newest.exit_status = 1
        bench.manager.step(now_s)
        bench.manager.step(next_s - 0.01)
        assert len(bench.started) == 2 + exits
        bench.manager.step(next_s + 0.001)
        assert len(bench.started) == 3 + exits
    bench.started[1].exit_status = 1
    bench.manager.step(2.0)
    bench.manager.step(2.11)
    assert bench.owners[-1] == "b:5"
    bench.started[4].exit_status = 1
    bench.manager.step(62.0)
    bench.manager.step(62.11)
    assert bench.owners[-1] == "a:6"


@pytest.mark.parametrize("error", [ConnectionRefusedError("no server"), EOFError("it died")])
def test_a_start_that_fails_is_retried(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """A fork server that dies during a start costs a pause and does not end the supervisor.

    It counts as a restart: one GPU of several that never starts must be seen.
    """
    bench, restarts = Bench("a", "b"), metrics.RESTARTS.labels("a")._value
    before = restarts.get()
    bench.error = error
    bench.manager.step(0.0)
    assert restarts.get() == before + 1
    assert "worker a could not be started" in caplog.text
    bench.error = None
    bench.manager.step(0.09)
    assert bench.owners == []
    bench.manager.step(0.1)
    assert bench.owners == ["a:0", "b:1"]
    assert bench.exited == []
    assert restarts.get() == before + 1


def test_refused_settings_stop_all() -> None:
    """Status 2 stops the others, starts no more, and is the supervisor's status.

    Such a process has held no message, so none is looked for.
    """
    bench = Bench("a", "b")
    bench.manager.step(0.0)
    bench.started[0].exit_status = 2
    bench.manager.step(1.0)
    assert bench.started[1].signals == [signal.SIGTERM]
    assert not bench.manager.has_stopped
    bench.started[1].exit_status = 0
    bench.manager.step(2.0)
    assert bench.manager.has_stopped
    assert bench.manager.status == 2
    assert bench.exited == [("b:1", 2.0)]
    bench.manager.step(100.0)
    assert len(bench.started) == 2


def test_each_stop_sends_one_signal() -> None:
    """Every running process gets one SIGTERM for each `stop`; none is started; the status is 0."""
    bench = Bench("a", "b", "c")
    bench.manager.step(0.0)
    bench.started[2].exit_status = 1
    bench.manager.step(0.5)
    bench.manager.stop(1.0)
    for now_s in (1.0, 1.1, 50.0):
        bench.manager.step(now_s)
    assert [stub.signals for stub in bench.started] == [[signal.SIGTERM], [signal.SIGTERM], []]
    bench.started[0].exit_status = -signal.SIGTERM
    bench.manager.step(51.0)
    bench.manager.stop(51.0)
    assert bench.started[0].signals == [signal.SIGTERM]
    assert bench.started[1].signals == [signal.SIGTERM] * 2
    bench.started[1].exit_status = 2
    bench.manager.step(52.0)
    assert bench.manager.has_stopped
    assert bench.manager.status == 0
    assert len(bench.started) == 3


def test_a_process_that_does_not_stop_is_killed() -> None:
    """A process that runs `grace_s` after the first `stop` is killed once; its exit is reported."""
    bench = Bench("a", "b")
    bench.manager.step(0.0)
    bench.manager.stop(10.0)
    bench.manager.stop(20.0)
    bench.started[0].exit_status = 0
    bench.manager.step(10.0 + GRACE_S - 0.1)
    assert signal.SIGKILL not in bench.started[1].signals
    for more_s in (0.0, 0.1, 100.0):
        bench.manager.step(10.0 + GRACE_S + more_s)
        assert bench.started[1].signals.count(signal.SIGKILL) == 1
    assert bench.started[1].signals == [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL]
    assert bench.started[0].signals == [signal.SIGTERM] * 2
    bench.started[1].exit_status = -signal.SIGKILL
    bench.manager.step(500.0)
    assert bench.manager.has_stopped
    assert [owner for owner, _ in bench.exited] == ["a:0", "b:1"]


def test_a_stop_may_come_before_the_first_start() -> None:
    """After a signal before the first step no process is started."""
    bench = Bench("a")
    bench.manager.stop(0.0)
    bench.manager.step(0.0)
    assert bench.manager.has_stopped
    assert bench.started == []


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.floats(0.05, 100.0), st.sampled_from("ab"), st.sampled_from([0, 1, 70, 75, -9])
        ),
        max_size=30,
    )
)
def test_any_sequence_of_exits_keeps_the_slots_filled(exits: list[tuple[float, str, int]]) -> None:
    """No slot ever has two processes, each exit is reported once, and in a minute all are full."""
    bench, now_s = Bench("a", "b"), 0.0
    bench.manager.step(now_s)
    for after_s, name, status in exits:
        now_s += after_s
        running = [s for s in bench.started if s.exit_status is None and s.owner[0] == name]
        assert len(running) <= 1
        for stub in running:
            stub.exit_status = status
        bench.manager.step(now_s)
    bench.manager.step(now_s + 60.0)
    running = [stub for stub in bench.started if stub.exit_status is None]
    assert sorted(stub.owner[0] for stub in running) == ["a", "b"]
    exited = [stub.owner for stub in bench.started if stub.exit_status is not None]
    assert sorted(exited) == sorted(owner for owner, _ in bench.exited)
