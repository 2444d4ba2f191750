"""The Celery task: the result that it stores for each outcome, and what happens when it can't."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.exceptions import BackendStoreError, Ignore, Reject
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from api_contracts.errors import GenerationExpired, GenerationFailed, TaskError
from api_contracts.names import TASK_NAME
from api_contracts.result import GenerationResult
from tests.record.owners import ERROR, RESULT
from worker.broker.validate_message import WANTS_RESULT
from worker.execution import celery_task
from worker.execution.celery_task import Generate
from worker.execution.outcome import (
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    TaskSucceeded,
)
from worker.metrics import REJECTED

if TYPE_CHECKING:
    from worker.execution.delivery import Delivery
    from worker.execution.outcome import Outcome

SUCCEEDED = TaskSucceeded(GenerationResult.model_validate(RESULT))
FAILED = TaskFailed(TaskError.model_validate(ERROR))


@dataclass
class StubExecutor:
    """Returns or raises one outcome, and records which tasks were closed."""

    outcome: Outcome | Exception
    closed: list[str] = field(default_factory=list)

    def execute(self, _delivery: Delivery) -> Outcome:
        """Return or raise the outcome."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def is_known(self, task_id: str) -> bool:
        """Only the task `known` has a record."""
        return task_id == "known"

    def close(self, task_id: str) -> None:
        """Record it."""
        self.closed.append(task_id)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause before a message is requeued."""
    monkeypatch.setattr(celery_task, "REQUEUE_PAUSE_S", 0.0)


def task(executor: Any) -> Generate:
    """The task over a result backend in memory."""
    app = Celery("judge", backend="cache+memory://", set_as_current=False)
    made = app.register_task(Generate(executor))
    assert isinstance(made, Generate)
    made.backend.client.cache.clear()
    return made


def call(made: Generate, task_id: str, **headers: Any) -> Any:
    """Call the task as Celery's tracer does."""
    context = Context({"id": task_id, "delivery_info": {"routing_key": "q"}, **headers})
    made.request_stack.push(context)
    try:
        return made.run(request={"prompt": "x"})
    finally:
        made.request_stack.pop()


@pytest.mark.parametrize(
    ("outcome", "raises", "state"),
    [
        (SUCCEEDED, None, "SUCCESS"),
        (FAILED, GenerationFailed, "FAILURE"),
        (TaskExpired(3), GenerationExpired, "FAILURE"),
        (TaskExpired(0, by_message=True), Ignore, "REVOKED"),
        (TaskCancelled(3), Ignore, "REVOKED"),
    ],
)
@pytest.mark.parametrize("wanted", [True, False])
def test_an_end_is_stored_and_the_task_closed(
    outcome: Outcome, raises: type[Exception] | None, state: str, wanted: bool
) -> None:
    """An end is stored as Celery's state unless results are ignored; the task is closed anyway."""
    made = task(executor := StubExecutor(outcome))
    if raises is None:
        assert call(made, "t", **{WANTS_RESULT: wanted}) == RESULT
    else:
        with pytest.raises(raises):
            call(made, "t", **{WANTS_RESULT: wanted})
    assert made.backend.get_state("t") == (state if wanted else "PENDING")
    assert executor.closed == ["t"]


@pytest.mark.parametrize(
    ("outcome", "raises"), [(TaskRequeued("r", counts=True), Reject), (TaskDropped("d"), Ignore)]
)
def test_an_outcome_that_is_not_final_is_not_stored(
    outcome: Outcome, raises: type[Exception]
) -> None:
    """An outcome that is not final leaves Celery's state as it was, and the task open."""
    made = task(executor := StubExecutor(outcome))
    with pytest.raises(raises):
        call(made, "t")
    assert (made.backend.get_state("t"), executor.closed) == ("PENDING", [])


@pytest.mark.parametrize(
    ("fault", "task_id"),
    [
        (RuntimeError("can't start new thread"), "known"),
        (RedisConnectionError("away"), "known"),
        (NoPermissionError("NOPERM"), "known"),
        (ResponseError("MISCONF"), "known"),
        (KeyError("x"), "unknown"),
    ],
)
def test_an_unexpected_error_requeues_the_message(fault: Exception, task_id: str) -> None:
    """An unexpected error requeues the message, stores no failure and leaves the task open."""
    made = task(executor := StubExecutor(fault))
    with pytest.raises(Reject) as sent:
        call(made, task_id)
    assert sent.value.requeue
    assert (made.backend.get_state("t"), executor.closed) == ("PENDING", [])


@pytest.mark.parametrize(
    "fault", [ResponseError("attempt is not a number"), ValueError("no JSON"), KeyError("images")]
)
def test_the_message_of_an_unreadable_record_is_dropped(fault: Exception) -> None:
    """The message of an unreadable record is dropped and counted; requeued, it would never end."""
    made, unreadable = task(executor := StubExecutor(fault)), REJECTED.labels("odd_record")._value
    before = unreadable.get()
    with pytest.raises(Ignore):
        call(made, "known")
    assert unreadable.get() == before + 1
    assert (made.backend.get_state("t"), executor.closed) == ("PENDING", [])


@pytest.mark.parametrize("outcome", [SUCCEEDED, FAILED, TaskCancelled(1)])
def test_a_task_whose_end_can_not_be_stored_stays_open(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task whose end can't be stored stays open, and no failure is stored instead.

    The message is not requeued, where it would go before those of a lower priority. The reconciler
    sends an open task again, and that message tries again.
    """
    made = task(executor := StubExecutor(outcome))
    trace = build_tracer(TASK_NAME, made, app=made.app)
    kept, away = made.backend.store_result, [True]

    def store(*args: Any, **options: Any) -> Any:
        if away.pop():
            away.append(False)
            raise BackendStoreError("away")
        away.append(False)
        return kept(*args, **options)

    monkeypatch.setattr(made.backend, "store_result", store)
    request = {"id": "t", "delivery_info": {"routing_key": "q"}}
    first = trace("t", [], {"request": {"prompt": "x"}}, request)
    assert isinstance(first.info.retval, Ignore)
    assert (made.backend.get_state("t"), executor.closed) == ("PENDING", [])
    trace("t", [], {"request": {"prompt": "x"}}, request)
    assert made.backend.get_state("t") in ("SUCCESS", "FAILURE", "REVOKED")
    assert executor.closed == ["t"]


def test_after_a_failure_each_end_is_stored_without_retries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a failed write each end is stored without retries, which would occupy the slots."""
    made, tries = task(StubExecutor(SUCCEEDED)), list[str]()

    def fail(task_id: str, *_: Any, **__: Any) -> None:
        tries.append(task_id)
        raise RedisConnectionError("away")

    monkeypatch.setattr(celery_task, "STORE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(made.backend, "store_result", fail)
    for name in ("first", "second", "third"):
        with pytest.raises(Ignore):
            call(made, name)
    assert tries.count("first") > 1
    assert (tries.count("second"), tries.count("third")) == (1, 1)
