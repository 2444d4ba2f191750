"""What can go wrong with a task, as data on the wire and as exceptions for the caller."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Sequence


class ErrorCode(StrEnum):
    """Every way in which a task can fail."""

    INVALID_REQUEST = "invalid_request"
    UNKNOWN_MODEL = "unknown_model"
    MODEL_LOAD_FAILED = "model_load_failed"
    OUT_OF_MEMORY = "out_of_memory"
    UNSUPPORTED_SCHEDULER = "unsupported_scheduler"
    INPUT_NOT_FOUND = "input_not_found"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    WORKER_STALLED = "worker_stalled"
    INTERNAL = "internal"


def _encodable(text: str) -> str:
    """Half a surrogate pair as `?`: it may stand in JSON, but no strict reader takes it."""
    return text.encode(errors="replace").decode()


#: Text that may repeat what somebody sent.
Told = Annotated[str, AfterValidator(_encodable)]


class FieldError(BaseModel):
    """One thing wrong with a request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    where: Told = Field(description="The field, as `prompt` or `seed[2]`.")
    what: Told = Field(description="What is wrong with it.")
    limit: Told | None = Field(default=None, description="The limit that it breaks.")


class TaskError(BaseModel):
    """Why a task failed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: ErrorCode | str = Field(description="One of a later version is kept as it came.")
    message: Told = Field(description="For a person: what happened and what to do.")
    retryable: bool = Field(description="Whether it may succeed under a new id.")
    details: dict[str, Any] = Field(
        # The published schema has these words: `Fault` was the name of `FieldError` in 0.1.
        default_factory=dict,
        description="`faults` where the request is refused, each a `Fault`.",
    )


class GenerationError(Exception):
    """Anything that keeps a caller from a result."""


class InvalidRequest(GenerationError, ValueError):
    """The request breaks the contract; `faults` says where, all of it at once."""

    def __init__(self, faults: Sequence[FieldError]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{fault.where}: {fault.what}" for fault in self.faults))

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[FieldError, ...]]]:
        """Pickled with its faults: pools of processes, Celery's among them, pass errors so."""
        return type(self), (self.faults,)


class TaskNotFound(GenerationError, LookupError):
    """No record of this task: never submitted, or ended longer ago than records are kept."""


class ServiceUnavailable(GenerationError, ConnectionError):
    """Redis did not answer within the client's patience. Nothing is known to be lost."""


class WaitTimeout(GenerationError, TimeoutError):
    """The task did not end, or said nothing, within the time given. It goes on."""


class GenerationFailed(GenerationError):
    """The task ended as `failed`. Its four arguments are the fields of `TaskError`.

    Celery stores the arguments as they are, so `AsyncResult.get()` raises the same.
    """

    def __init__(
        self,
        code: str,
        message: str,
        retryable: bool = False,  # noqa: FBT001, FBT002  # Celery rebuilds it from positions
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message, retryable, details or {})

    @classmethod
    def of(cls, error: TaskError) -> GenerationFailed:
        """The exception for an error from the wire."""
        return cls(str(error.code), error.message, error.retryable, error.details)

    @property
    def error(self) -> TaskError:
        """The same as data."""
        code, message, retryable, details = self.args
        return TaskError(code=code, message=message, retryable=retryable, details=details)

    def __str__(self) -> str:
        code, message, _, _ = self.args
        return f"{code}: {message}"


class GenerationExpired(GenerationFailed):
    """The task's deadline passed before it was done."""

    @classmethod
    def at(cls, step: int) -> GenerationExpired:
        """The exception for a task that had done `step` steps."""
        return cls(ErrorCode.DEADLINE_EXCEEDED.value, f"the deadline passed at step {step}")


class GenerationCancelled(GenerationError):
    """The task was cancelled."""

    @classmethod
    def at(cls, step: int) -> GenerationCancelled:
        """The exception for a task that had done `step` steps."""
        return cls(f"cancelled at step {step}")
