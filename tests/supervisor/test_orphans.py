"""What dead processes held goes back, also when Redis is away; the time is passed in."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError

from worker.supervisor.orphaned_work import Orphans

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Desk:
    """Orphans whose tries are answered by the test."""

    def __init__(self) -> None:
        self.tries: list[tuple[str, Future[int]]] = []
        self.orphans = Orphans(self.give_back, self.submit)

    def give_back(self, owner: str) -> int:
        """Be passed on; the test answers instead."""
        raise AssertionError(owner)

    def submit(self, call: Callable[[str], int], owner: str) -> Future[int]:
        """Note the try."""
        assert call == self.give_back
        future: Future[int] = Future()
        self.tries.append((owner, future))
        return future

    @property
    def owners(self) -> list[str]:
        """Whose messages were tried, in order."""
        return [owner for owner, _ in self.tries]

    def fail(self, error: Exception) -> None:
        """Answer the newest try."""
        self.tries[-1][1].set_exception(error)


AWAY = RedisConnectionError("Connection refused")


def test_it_goes_back_at_once_and_once(caplog: pytest.LogCaptureFixture) -> None:
    """The next step after a death tries; when that has succeeded, nothing is left to do."""
    desk = Desk()
    desk.orphans.add("host:a:1", 5.0)
    assert desk.orphans.are_left
    desk.orphans.step(5.0, patient=True)
    desk.orphans.step(5.1, patient=True)
    assert desk.owners == ["host:a:1"]
    desk.tries[0][1].set_result(3)
    for now_s in (5.2, 10.0):
        desk.orphans.step(now_s, patient=True)
    assert not desk.orphans.are_left
    assert desk.owners == ["host:a:1"]
    assert "gave back 3 messages of host:a:1" in caplog.text


def test_a_try_that_hangs_holds_up_nobody_but_the_next_try() -> None:
    """A step returns while Redis hangs, and there is one try at a time."""
    desk = Desk()
    desk.orphans.add("host:a:1", 0.0)
    desk.orphans.add("host:b:2", 0.0)
    for now_s in (0.0, 1.0, 30.0):
        desk.orphans.step(now_s, patient=True)
    assert desk.owners == ["host:a:1"]
    desk.tries[0][1].set_result(0)
    desk.orphans.step(31.0, patient=True)
    assert desk.owners == ["host:a:1", "host:b:2"]


def test_while_redis_is_away_it_is_tried_each_second_for_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each failure is a warning and another try a second later; after 60 s it is the last."""
    desk = Desk()
    desk.orphans.add("host:a:1", 0.0)
    now_s = 0.0
    desk.orphans.step(now_s, patient=True)
    while now_s < 60.0:
        desk.fail(AWAY)
        before = len(desk.tries)
        desk.orphans.step(now_s, patient=True)
        desk.orphans.step(now_s + 0.9, patient=True)
        assert len(desk.tries) == before
        assert desk.orphans.are_left
        now_s += 1.0
        desk.orphans.step(now_s, patient=True)
    assert len(desk.tries) == 61
    assert "ERROR" not in caplog.text
    desk.fail(AWAY)
    desk.orphans.step(now_s, patient=True)
    assert not desk.orphans.are_left
    assert "host:a:1 come back by their leases alone" in caplog.text


def test_one_that_waits_for_redis_lets_the_other_pass() -> None:
    """Between two tries for one owner, another's is made."""
    desk = Desk()
    desk.orphans.add("host:a:1", 0.0)
    desk.orphans.step(0.0, patient=True)
    desk.fail(AWAY)
    desk.orphans.add("host:b:2", 0.1)
    desk.orphans.step(0.2, patient=True)
    desk.tries[-1][1].set_result(1)
    desk.orphans.step(1.3, patient=True)
    assert desk.owners == ["host:a:1", "host:b:2", "host:a:1"]


def test_a_supervisor_that_leaves_tries_once() -> None:
    """What fails while the supervisor leaves is left to the leases: it does not stay for Redis."""
    desk = Desk()
    desk.orphans.add("host:a:1", 0.0)
    desk.orphans.step(0.0, patient=False)
    assert desk.orphans.are_left
    desk.fail(AWAY)
    desk.orphans.step(0.1, patient=False)
    assert not desk.orphans.are_left


def test_an_error_of_ours_is_told_and_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    """What is no outage would fail again: it is logged with its cause, and the loop goes on."""
    desk = Desk()
    desk.orphans.add("host:a:1", 0.0)
    desk.orphans.step(0.0, patient=True)
    desk.fail(KeyError("a bug"))
    desk.orphans.step(0.1, patient=True)
    assert not desk.orphans.are_left
    assert "a bug" in caplog.text
