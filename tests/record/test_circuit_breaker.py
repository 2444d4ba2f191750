"""The circuit breaker: when the process is at fault, and when the tasks are."""

from __future__ import annotations

import pytest

from api_contracts.errors import ErrorCode, TaskError
from api_contracts.result import GenerationResult
from tests.record.owners import RESULT
from worker.execution.circuit_breaker import MAX_FAILURES, CircuitBreaker
from worker.execution.outcome import (
    Outcome,
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    TaskSucceeded,
)

FAULT = "a fault of the worker (OSError)"
ERROR = TaskError(code=ErrorCode.INTERNAL, message=FAULT, retryable=True)
BROKEN: list[Outcome] = [TaskFailed(ERROR), TaskRequeued("internal: a fault", counts=True)]


@pytest.fixture
def reasons() -> list[str]:
    """The reasons with which it tripped."""
    return []


@pytest.fixture
def breaker(reasons: list[str]) -> CircuitBreaker:
    """A breaker that has not tripped."""
    return CircuitBreaker(reasons.append)


@pytest.mark.parametrize("outcome", BROKEN)
def test_different_tasks_that_fail_in_a_row_trip_it(
    breaker: CircuitBreaker, reasons: list[str], outcome: Outcome
) -> None:
    """The third task in a row that fails trips the breaker once, and the reason stays readable."""
    for number in range(MAX_FAILURES - 1):
        breaker.count(f"t{number}", outcome, FAULT)
    assert (reasons, breaker.reason) == ([], None)
    for number in range(MAX_FAILURES - 1, MAX_FAILURES + 3):
        breaker.count(f"t{number}", outcome, FAULT)
    assert MAX_FAILURES == 3
    assert reasons == [breaker.reason]
    assert FAULT in reasons[0]


def test_a_success_resets_the_count(breaker: CircuitBreaker, reasons: list[str]) -> None:
    """A process in which one task succeeds is not broken."""
    done = TaskSucceeded(GenerationResult.model_validate(RESULT))
    for number in range(10):
        breaker.count(f"t{number}", BROKEN[0], FAULT)
        breaker.count(f"u{number}", BROKEN[1], FAULT)
        breaker.count("good", done, None)
    assert (reasons, breaker.reason) == ([], None)


def test_one_task_alone_does_not_trip_it(breaker: CircuitBreaker, reasons: list[str]) -> None:
    """A task that fails everywhere says nothing about the process, however often it returns."""
    for _ in range(10):
        breaker.count("poison", BROKEN[1], FAULT)
    breaker.count("another", BROKEN[0], FAULT)
    assert (reasons, breaker.reason) == ([], None)


@pytest.mark.parametrize(
    "outcome", [TaskCancelled(3), TaskExpired(0), TaskDropped("x"), BROKEN[0], BROKEN[1]]
)
def test_what_is_not_the_process_fault_neither_counts_nor_resets(
    breaker: CircuitBreaker, reasons: list[str], outcome: Outcome
) -> None:
    """A refused request, a cancel or a drain in between changes nothing."""
    for number in range(MAX_FAILURES - 1):
        breaker.count(f"t{number}", BROKEN[0], FAULT)
        for other in range(5):
            breaker.count(f"o{other}", outcome, None)
    assert reasons == []
    breaker.count("t9", BROKEN[0], FAULT)
    assert len(reasons) == 1
