"""The drain that signals start, and the time that tasks have to finish."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from worker.runtime import WorkerProcess, drain_s

if TYPE_CHECKING:
    from worker.config.settings import Settings


@pytest.mark.parametrize(
    ("asked_s", "expected_s"),
    [
        ([5.0], 30.0),
        ([5.0, 5.0], 30.0),
        ([5.0, 5.9], 30.0),
        ([5.0, 6.1], 0.0),
        ([5.0, 5.5, 6.2], 0.0),
    ],
)
def test_a_second_signal_ends_the_drain(asked_s: list[float], expected_s: float) -> None:
    """The first signal starts the drain, a second one ends it unless within a second."""
    assert drain_s(asked_s, 30.0) == expected_s


def test_a_signal_in_the_middle_of_a_line_of_the_log_drains(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain writes no line on the thread of the signal's handler, where that would raise."""
    handlers_thread, said, drained = (
        threading.current_thread(),
        threading.Event(),
        threading.Event(),
    )

    def handle(record: logging.LogRecord) -> None:
        if threading.current_thread() is handlers_thread:
            message = f"reentrant call inside <_io.BufferedWriter>: {record.getMessage()}"
            raise RuntimeError(message)
        said.set()

    process = WorkerProcess(
        settings.model_copy(update={"drain_timeout_s": 0}), "h:n:t", mock.Mock()
    )
    monkeypatch.setattr(process, "_exit_deadline", mock.Mock())
    monkeypatch.setattr(process.executor, "drain", drained.set)
    runtime = logging.getLogger("worker.runtime")
    monkeypatch.setattr(runtime, "handle", handle)
    monkeypatch.setattr(runtime, "level", logging.INFO)
    process.drain()
    assert drained.wait(60)
    assert said.wait(60)
