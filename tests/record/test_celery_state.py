"""Celery's states of running tasks: written together, and never after the final one."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from tests.record.owners import until
from worker.record import celery_state
from worker.record.celery_state import CeleryState

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from worker.record.celery_state import State

META = {"step": 1, "total_steps": 2}


class HeldStore:
    """Celery's backend, which does not answer until `go_on`."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        #: The tasks of each call.
        self.calls: list[list[str]] = []

    def store(self, states: Mapping[str, State]) -> None:
        """Signal the call, wait, then answer."""
        self.reached.set()
        assert self.go_on.wait(30)
        self.calls.append(list(states))


def test_progress_is_mirrored_again_after_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is mirrored again with the next step after the interval."""
    monkeypatch.setattr(celery_state, "MIN_INTERVAL_S", 0.0)
    steps: list[int] = []
    made = CeleryState(lambda states: steps.append(states["t"][0]["step"]))
    for number in range(1, 4):
        made.post_progress({"t": {"step": number, "total_steps": 9}})
        until(partial(steps.__contains__, number))
    made.close()


def test_no_state_is_written_after_the_end(task_id: str) -> None:
    """A waiting state is dropped when its task ends: it would overwrite the final state."""
    held = HeldStore()
    state = CeleryState(held.store)
    state.post_progress({"busy": META})
    assert held.reached.wait(10)
    state.post_progress({task_id: META})
    state.discard(task_id)
    held.go_on.set()
    state.discard("busy")
    state.close()
    assert held.calls == [["busy"]]


def test_the_newest_states_of_all_tasks_are_one_call() -> None:
    """While a call is under way the states of all tasks wait for the next one, each the newest."""
    held = HeldStore()
    state = CeleryState(held.store)
    state.post_started("first")
    assert held.reached.wait(10)
    state.post_started("second")
    state.post_progress({"first": META, "second": META, "third": META})
    held.go_on.set()
    until(lambda: len(held.calls) == 2)
    state.close()
    assert held.calls == [["first"], ["second", "first", "third"]]


def test_the_end_waits_for_a_state_being_written() -> None:
    """The end of a task waits for a call that writes its state, and for no other call."""
    held = HeldStore()
    state = CeleryState(held.store)
    state.post_progress({"one": META, "two": META})
    assert held.reached.wait(10)
    state.discard("other")
    ending = threading.Thread(target=state.discard, args=("two",))
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    held.go_on.set()
    ending.join(10)
    assert not ending.is_alive()
    state.close()
