"""Exceptions that end a task, each with its error code, and the exception of a failed push."""

from __future__ import annotations

from typing import Any, ClassVar

from api_contracts.errors import ErrorCode, FieldError, TaskError
from worker.logs import without_logins


class TaskFailedError(Exception):
    """The task failed. Subclasses have the code, and whether another attempt may succeed."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    retryable: bool = False
    #: Name of what failed, where several tasks fail of the same; empty where the task alone does.
    shared_fault: str = ""
    #: Whether the process may be at fault, of a code that such a fault may have.
    may_be_of_process: bool = True

    def __init__(self, message: str, **details: Any) -> None:  # noqa: ANN401  # any JSON
        super().__init__(message)
        self.message = message
        self.details = details

    @property
    def error(self) -> TaskError:
        """The wire format."""
        return TaskError(
            code=self.code, message=self.message, retryable=self.retryable, details=self.details
        )


class BadRequestError(TaskFailedError):
    """The request or its message is refused; `details.faults` has the fields."""

    code = ErrorCode.INVALID_REQUEST

    def __init__(self, *faults: FieldError) -> None:
        summary = "; ".join(f"{fault.where}: {fault.what}" for fault in faults)
        super().__init__(
            f"the request is refused: {summary}", faults=[fault.model_dump() for fault in faults]
        )


class UnknownModelError(TaskFailedError):
    """No model of that alias in this worker's settings."""

    code = ErrorCode.UNKNOWN_MODEL


class ModelLoadError(TaskFailedError):
    """The model could not be loaded."""

    code = ErrorCode.MODEL_LOAD_FAILED

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        """`retryable` is False when the files are missing, broken or not supported.

        Logins are left out: the hub's client says its URL, and the message goes to the caller.
        """
        super().__init__(without_logins(message))
        self.retryable = retryable


class AdapterLoadError(ModelLoadError):
    """An adapter of a loaded model, which the request names, could not be loaded.

    When that may pass, all tasks that it fails have one cause. Otherwise its file is at fault, and
    not the process: it serves all requests that do not name the adapter.
    """

    def __init__(self, message: str, adapter: str, *, retryable: bool) -> None:
        """`adapter` is its name and model."""
        super().__init__(message, retryable=retryable)
        self.shared_fault = f"adapter {adapter}"
        self.may_be_of_process = retryable


class DeviceOutOfMemoryError(TaskFailedError):
    """The device has not enough memory for this task."""

    code = ErrorCode.OUT_OF_MEMORY
    retryable = True


class NotFiniteError(TaskFailedError):
    """The networks gave values that are no numbers; the same request would give them again."""

    code = ErrorCode.NOT_FINITE


class UnsupportedSchedulerError(TaskFailedError):
    """No scheduler of that name is served."""

    code = ErrorCode.UNSUPPORTED_SCHEDULER


class InputNotFoundError(TaskFailedError):
    """A reference names an object that does not exist below the input prefix."""

    code = ErrorCode.INPUT_NOT_FOUND


class StorageUnavailableError(TaskFailedError):
    """S3 refused, or did not answer within `SAG_S3_RETRY_S`."""

    code = ErrorCode.STORAGE_UNAVAILABLE
    retryable = True


class PushError(Exception):
    """A try to deliver the final event of a task failed; the text says why."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        """`final` when another try can't succeed."""
        super().__init__(why)
        self.final = final
