"""The background thread: rounds, pauses, errors, and its end."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from worker.background import BackgroundThread, log_error

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 30.0


def ignore(_: Exception) -> None:
    """Do nothing about an error."""


def three_rounds(run: Callable[[int], None]) -> tuple[BackgroundThread, list[Exception]]:
    """A thread that stops itself in its third round, and the errors it reported."""
    errors: list[Exception] = []
    number = 0

    def round_() -> None:
        nonlocal number
        number += 1
        if number == 3:
            thread.stop()
        run(number)

    thread = BackgroundThread("test", round_, errors.append)
    return thread, errors


def test_a_round_that_raises_is_followed_by_the_next() -> None:
    """An error is reported and ends neither the thread nor the rounds after it."""
    rounds: list[int] = []

    def run(number: int) -> None:
        rounds.append(number)
        if number == 2:
            raise ValueError("round 2")

    thread, errors = three_rounds(run)
    thread.start()
    thread.join(WAIT_S)
    assert rounds == [1, 2, 3]
    assert [str(error) for error in errors] == ["round 2"]


def test_it_is_started_once() -> None:
    """A second start does nothing: one thread runs the rounds."""
    threads, go_on = set[int](), threading.Event()

    def run_round() -> None:
        threads.add(threading.get_ident())
        go_on.wait()

    thread = BackgroundThread("test", run_round, ignore)
    thread.start()
    thread.start()
    go_on.set()
    thread.close(WAIT_S)
    thread.start()
    assert len(threads) == 1


def test_stopped_before_the_start_it_runs_nothing() -> None:
    """A stopped thread stays stopped, and joining one that never ran returns at once."""
    rounds: list[int] = []
    thread = BackgroundThread("test", lambda: rounds.append(1), ignore)
    thread.close(WAIT_S)
    thread.start()
    thread.join(WAIT_S)
    assert rounds == []


@pytest.mark.parametrize("fails", [True, False])
def test_a_stop_ends_the_pause(fails: bool) -> None:
    """A stop ends the pause at once, both after a round and after an error."""
    began = threading.Event()

    def run_round() -> None:
        began.set()
        if fails:
            raise ValueError

    thread = BackgroundThread("test", run_round, ignore, pause_s=1e6, retry_pause_s=1e6)
    thread.start()
    assert began.wait(WAIT_S)
    thread.close(WAIT_S)
    assert not thread._thread.is_alive()


def test_it_cleans_up_on_its_own_thread() -> None:
    """`on_exit` is called once, after the last round."""
    calls: list[str] = []
    thread = BackgroundThread(
        "cleaner",
        lambda: thread.stop(),  # noqa: PLW0108  # not yet defined here
        ignore,
        on_exit=lambda: calls.append(threading.current_thread().name),
    )
    thread.start()
    thread.join(WAIT_S)
    assert calls == ["cleaner"]


@pytest.mark.parametrize("error", [RedisConnectionError("away"), ValueError("a bug")])
def test_only_a_bug_is_logged_with_its_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug is logged with its traceback, an unavailable Redis in one line."""
    log_error(logging.getLogger("test"), "nothing done", error)
    (line,) = caplog.records
    assert line.getMessage() == f"nothing done: {error}"
    assert bool(line.exc_info) == isinstance(error, ValueError)
