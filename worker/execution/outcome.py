"""The outcomes of a delivery, and how the record, events and errors represent them.

The union is closed: `celery_task` and `executor` match it exhaustively.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from api_contracts.errors import ErrorCode, TaskError
from api_contracts.events import TaskStatus
from api_contracts.result import GenerationResult
from worker.job_control import JobStopped, Stop

if TYPE_CHECKING:
    from worker.record.claim import Claim, Ended

#: Error codes whose tasks become dead letters: the workers are likelier at fault than the request.
_DEAD_LETTER_CODES = frozenset(
    {
        ErrorCode.ATTEMPTS_EXHAUSTED,
        ErrorCode.WORKER_STALLED,
        ErrorCode.MODEL_LOAD_FAILED,
        ErrorCode.INTERNAL,
    }
)


@dataclass(frozen=True)
class TaskSucceeded:
    """All images and the manifest are stored."""

    label: ClassVar[str] = "succeeded"
    result: GenerationResult

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True)
class TaskFailed:
    """The task failed; there is no further attempt."""

    label: ClassVar[str] = "failed"
    error: TaskError
    #: As `TaskFailedError.shared_fault`.
    shared_fault: str = ""
    #: As `TaskFailedError.may_be_of_process`.
    may_be_of_process: bool = True

    def __str__(self) -> str:
        # The message of a refused request repeats user input, which must not reach the log.
        places = [fault["where"] for fault in self.error.details.get("faults", ())]
        return f"failed ({self.error.code}: {ascii(', '.join(places) or self.error.message)[1:-1]})"


@dataclass(frozen=True)
class TaskCancelled:
    """A caller cancelled the task."""

    label: ClassVar[str] = "cancelled"
    step: int

    def __str__(self) -> str:
        return f"cancelled at step {self.step}"


@dataclass(frozen=True)
class TaskExpired:
    """A deadline passed."""

    label: ClassVar[str] = "expired"
    step: int
    #: Whether the deadline was the message's own, Celery's `expires`.
    by_message: bool = False

    def __str__(self) -> str:
        return f"expired at step {self.step}"


@dataclass(frozen=True)
class TaskRequeued:
    """The task and its message go back to the queue for another attempt."""

    label: ClassVar[str] = "requeued"
    reason: str
    #: Whether this delivery counts as an attempt.
    counts: bool
    #: Reached in this attempt.
    step: int = 0

    def __str__(self) -> str:
        return f"requeued ({self.reason})"


@dataclass(frozen=True)
class TaskDropped:
    """The message is a duplicate, or another worker has claimed the task."""

    label: ClassVar[str] = "dropped"
    reason: str

    def __str__(self) -> str:
        return self.reason


#: Outcomes that end a task; after the others another delivery continues it.
FinalOutcome = TaskSucceeded | TaskFailed | TaskCancelled | TaskExpired
Outcome = FinalOutcome | TaskRequeued | TaskDropped


def final_event(outcome: FinalOutcome) -> tuple[TaskStatus, dict[str, Any]]:
    """The status that a task ends with, and the fields of its final event."""
    match outcome:
        case TaskSucceeded(result=result):
            return TaskStatus.SUCCEEDED, {"result": result.model_dump(mode="json")}
        case TaskFailed(error=error):
            return TaskStatus.FAILED, {"error": error.model_dump(mode="json")}
        case TaskCancelled(step=step):
            return TaskStatus.CANCELLED, {"step": step}
        case TaskExpired(step=step):
            return TaskStatus.EXPIRED, {"step": step}


def to_record(outcome: FinalOutcome) -> dict[str, Any]:
    """What the record stores of an outcome; `from_record` is the inverse."""
    match outcome:
        case TaskSucceeded(result=result):
            return result.model_dump(mode="json")
        case TaskFailed(error=error):
            return error.model_dump(mode="json")
        case TaskCancelled() | TaskExpired():
            return asdict(outcome)


def from_record(ended: Ended) -> Outcome:
    """The stored outcome of an ended task, which answers a duplicate message.

    Unknown fields are ignored: other versions of the worker write records, too.
    """
    match TaskStatus(ended.status):
        case TaskStatus.SUCCEEDED:
            return TaskSucceeded(GenerationResult.model_validate(ended.outcome))
        case TaskStatus.FAILED:
            return TaskFailed(TaskError.model_validate(ended.outcome))
        case TaskStatus.CANCELLED:
            return TaskCancelled(int(ended.outcome.get("step", 0)))
        case TaskStatus.EXPIRED:
            by_message = ended.outcome.get("by_message") is True
            return TaskExpired(int(ended.outcome.get("step", 0)), by_message=by_message)
        case _:
            message = f"a task with status {ended.status} has not ended"
            raise ValueError(message)


def from_stop(stop: JobStopped) -> Outcome:
    """The outcome of a job that was stopped at a step."""
    match stop.reason:
        case Stop.CANCELLED:
            return TaskCancelled(stop.step)
        case Stop.EXPIRED:
            return TaskExpired(stop.step)
        case Stop.DRAINED:
            return TaskRequeued(f"worker drained at step {stop.step}", counts=False, step=stop.step)
        case Stop.SUPERSEDED:
            return TaskDropped("another worker has claimed it")


def dead_letter_reason(outcome: Outcome) -> str:
    """Why a task becomes a dead letter; empty when it does not."""
    if isinstance(outcome, TaskFailed) and outcome.error.code in _DEAD_LETTER_CODES:
        return f"{outcome.error.code}: {outcome.error.message}"
    return ""


def attempts_exhausted(claim: Claim) -> TaskError:
    """The error of a task all of whose attempts ended without an outcome, as when workers die."""
    message = f"{claim.attempt} workers took this task and none of them finished it"
    return TaskError(code=ErrorCode.ATTEMPTS_EXHAUSTED, message=message, retryable=False)


def worker_stalled(claim: Claim, reason: str) -> TaskError:
    """The error of a task whose last attempt hung."""
    message = f"{reason}, in the last of {claim.attempt} attempts"
    return TaskError(code=ErrorCode.WORKER_STALLED, message=message, retryable=True)


def internal_error(error: Exception) -> TaskError:
    """The error of a task that hit a bug of the worker."""
    message = f"a fault of the worker ({type(error).__name__}); its log has the details"
    return TaskError(code=ErrorCode.INTERNAL, message=message, retryable=True)
