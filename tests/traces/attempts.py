"""Attempts as the executor writes their spans, without a task."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from worker.job_control import Stage
from worker.record.claim import Claim, ClaimAnswer
from worker.tracing.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

QUEUE = "generate.default"


def claim(task_id: str = "task", **fields: Any) -> Claim:
    """A first claim, half a second after the submission."""
    now_s = time.time()
    given: dict[str, Any] = {
        "task_id": task_id, "answer": ClaimAnswer.RUN, "fence": 1, "token": "t", "attempt": 1,
        "submitted_at_s": now_s - 0.5, "claimed_at_s": now_s, "since_s": now_s - 0.5,
    }  # fmt: skip
    return Claim(**(given | fields))


def stage(name: str, seconds: float = 0.1, **facts: Any) -> Stage:
    """A stage that has just ended."""
    now_s = time.perf_counter()
    return Stage(name, now_s - seconds, now_s, **facts)


@contextmanager
def exporting(
    monkeypatch: pytest.MonkeyPatch, url: str, owner: str = "host:name:1", **variables: str
) -> Iterator[Traces]:
    """Traces that are on, and closed at the end; `variables` without `OTEL_`."""
    variables = {"EXPORTER_OTLP_ENDPOINT": url, "BSP_SCHEDULE_DELAY": "50"} | variables
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    traces = Traces(owner)
    traces.start()
    try:
        yield traces
    finally:
        traces.close()
