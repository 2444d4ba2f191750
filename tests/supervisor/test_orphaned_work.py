"""Messages of exited processes return to the queue, also after an outage of Redis."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError

from worker.supervisor.orphaned_work import OrphanedWork

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Bench:
    """Orphaned work whose releases are answered by the test."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, Future[int]]] = []
        self.orphans = OrphanedWork(self.release, self.submit)

    def release(self, owner: str) -> int:
        """Is only passed on; the test answers instead."""
        raise AssertionError(owner)

    def submit(self, call: Callable[[str], int], owner: str) -> Future[int]:
        """Note the attempt."""
        assert call == self.release
        future: Future[int] = Future()
        self.attempts.append((owner, future))
        return future

    @property
    def owners(self) -> list[str]:
        """The owners of the attempts, in order."""
        return [owner for owner, _ in self.attempts]

    def fail(self, error: Exception) -> None:
        """Have the latest attempt fail."""
        self.attempts[-1][1].set_exception(error)


AWAY = RedisConnectionError("Connection refused")


def test_messages_return_at_once_and_once(caplog: pytest.LogCaptureFixture) -> None:
    """The next step after an exit releases the messages; after a success nothing is left to do."""
    bench = Bench()
    bench.orphans.add("host:a:1", 5.0)
    assert bench.orphans.is_left
    bench.orphans.step(5.0, retry=True)
    bench.orphans.step(5.1, retry=True)
    assert bench.owners == ["host:a:1"]
    bench.attempts[0][1].set_result(3)
    for now_s in (5.2, 10.0):
        bench.orphans.step(now_s, retry=True)
    assert not bench.orphans.is_left
    assert bench.owners == ["host:a:1"]
    assert "returned 3 orphaned messages of host:a:1" in caplog.text


def test_a_hanging_attempt_delays_only_the_next_one() -> None:
    """A step returns while Redis hangs, and there is one attempt at a time."""
    bench = Bench()
    bench.orphans.add("host:a:1", 0.0)
    bench.orphans.add("host:b:2", 0.0)
    for now_s in (0.0, 1.0, 30.0):
        bench.orphans.step(now_s, retry=True)
    assert bench.owners == ["host:a:1"]
    bench.attempts[0][1].set_result(0)
    bench.orphans.step(31.0, retry=True)
    assert bench.owners == ["host:a:1", "host:b:2"]


def test_an_outage_is_retried_each_second_for_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each failure is a warning and is retried a second later; after 60 s it is the last."""
    bench = Bench()
    bench.orphans.add("host:a:1", 0.0)
    now_s = 0.0
    bench.orphans.step(now_s, retry=True)
    while now_s < 60.0:
        bench.fail(AWAY)
        before = len(bench.attempts)
        bench.orphans.step(now_s, retry=True)
        bench.orphans.step(now_s + 0.9, retry=True)
        assert len(bench.attempts) == before
        assert bench.orphans.is_left
        now_s += 1.0
        bench.orphans.step(now_s, retry=True)
    assert len(bench.attempts) == 61
    assert "ERROR" not in caplog.text
    bench.fail(AWAY)
    bench.orphans.step(now_s, retry=True)
    assert not bench.orphans.is_left
    assert "messages of host:a:1 not returned; they return when their leases expire" in caplog.text


def test_a_retry_does_not_block_other_owners() -> None:
    """Between two attempts for one owner, another's is made."""
    bench = Bench()
    bench.orphans.add("host:a:1", 0.0)
    bench.orphans.step(0.0, retry=True)
    bench.fail(AWAY)
    bench.orphans.add("host:b:2", 0.1)
    bench.orphans.step(0.2, retry=True)
    bench.attempts[-1][1].set_result(1)
    bench.orphans.step(1.3, retry=True)
    assert bench.owners == ["host:a:1", "host:b:2", "host:a:1"]


def test_a_stopping_supervisor_does_not_retry() -> None:
    """A failure while the supervisor stops is final: it does not wait for Redis."""
    bench = Bench()
    bench.orphans.add("host:a:1", 0.0)
    bench.orphans.step(0.0, retry=False)
    assert bench.orphans.is_left
    bench.fail(AWAY)
    bench.orphans.step(0.1, retry=False)
    assert not bench.orphans.is_left


def test_a_bug_is_logged_and_not_retried(caplog: pytest.LogCaptureFixture) -> None:
    """An error that is no outage is logged with its traceback, and the loop goes on."""
    bench = Bench()
    bench.orphans.add("host:a:1", 0.0)
    bench.orphans.step(0.0, retry=True)
    bench.fail(KeyError("a bug"))
    bench.orphans.step(0.1, retry=True)
    assert not bench.orphans.is_left
    assert "a bug" in caplog.text
