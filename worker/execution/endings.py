"""From one telling of a task's end to another: stop, record and error to outcome, and to event."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from api_contracts.errors import ErrorCode, TaskError
from api_contracts.events import TaskStatus
from api_contracts.result import GenerationResult
from worker.execution.outcome import (
    Cancelled,
    Dropped,
    Expired,
    Failed,
    Outcome,
    Requeued,
    Succeeded,
)
from worker.job_control import JobStopped, Stop

#: Ends that say more of the workers than of the request.
_DEADLY = frozenset(
    {
        ErrorCode.ATTEMPTS_EXHAUSTED,
        ErrorCode.WORKER_STALLED,
        ErrorCode.MODEL_LOAD_FAILED,
        ErrorCode.INTERNAL,
    }
)

if TYPE_CHECKING:
    from worker.record.task_record import Claim, Ended


def terminal(
    outcome: Succeeded | Failed | Cancelled | Expired,
) -> tuple[TaskStatus, dict[str, Any]]:
    """The state that an outcome ends a task in, and the fields of its event."""
    match outcome:
        case Succeeded(result=result):
            return TaskStatus.SUCCEEDED, {"result": result.model_dump(mode="json")}
        case Failed(error=error):
            return TaskStatus.FAILED, {"error": error.model_dump(mode="json")}
        case Cancelled(step=step):
            return TaskStatus.CANCELLED, {"step": step}
        case Expired(step=step):
            return TaskStatus.EXPIRED, {"step": step}


def kept(outcome: Succeeded | Failed | Cancelled | Expired) -> dict[str, Any]:
    """What the record keeps of an outcome, for `earlier`."""
    match outcome:
        case Succeeded(result=result):
            return result.model_dump(mode="json")
        case Failed(error=error):
            return error.model_dump(mode="json")
        case Cancelled() | Expired():
            return asdict(outcome)


def earlier(ended: Ended) -> Outcome:
    """The outcome that an ended task had, so that a repeated message is answered alike."""
    match TaskStatus(ended.status):
        case TaskStatus.SUCCEEDED:
            return Succeeded(GenerationResult.model_validate(ended.outcome))
        case TaskStatus.FAILED:
            return Failed(TaskError.model_validate(ended.outcome))
        case TaskStatus.CANCELLED:
            return Cancelled(int(ended.outcome.get("step", 0)))
        case TaskStatus.EXPIRED:
            by_message = ended.outcome.get("by_message") is True
            return Expired(int(ended.outcome.get("step", 0)), by_message=by_message)
        case _:
            return Dropped(f"record says {ended.status}")


def stopped(stop: JobStopped) -> Outcome:
    """The outcome of a job that was stopped at a step."""
    match stop.reason:
        case Stop.CANCELLED:
            return Cancelled(stop.step)
        case Stop.EXPIRED:
            return Expired(stop.step)
        case Stop.DRAINED:
            return Requeued(f"worker drained at step {stop.step}", counts=False, step=stop.step)
        case Stop.SUPERSEDED:
            return Dropped("another worker has claimed it")


def exhausted(claim: Claim) -> TaskError:
    """The error of a task that took too many workers."""
    message = f"{claim.attempt} workers took this task and none of them finished it"
    return TaskError(code=ErrorCode.ATTEMPTS_EXHAUSTED, message=message, retryable=False)


def stalled(claim: Claim, reason: str) -> TaskError:
    """The error of a task whose last attempt hung."""
    message = f"{reason}, in the last of {claim.attempt} attempts"
    return TaskError(code=ErrorCode.WORKER_STALLED, message=message, retryable=True)


def why_dead(outcome: Outcome) -> str:
    """Why a task goes to the dead letters: no worker could finish it; '' where that is not so."""
    if isinstance(outcome, Failed) and outcome.error.code in _DEADLY:
        return f"{outcome.error.code}: {outcome.error.message}"
    return ""


def internal(error: Exception) -> TaskError:
    """The error of a task that met a fault of ours."""
    message = f"a fault of the worker ({type(error).__name__}); its log has the details"
    return TaskError(code=ErrorCode.INTERNAL, message=message, retryable=True)
