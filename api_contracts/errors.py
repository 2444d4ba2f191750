"""Errors of a task: as data on the wire, and as exceptions for the caller."""

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
    NOT_FINITE = "not_finite"
    UNSUPPORTED_SCHEDULER = "unsupported_scheduler"
    INPUT_NOT_FOUND = "input_not_found"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    WORKER_STALLED = "worker_stalled"
    INTERNAL = "internal"


def _encodable(text: str) -> str:
    """Replace lone surrogates by `?`: JSON escapes can carry them, but UTF-8 can't."""
    return text.encode(errors="replace").decode()


#: Text that may quote input, such as the name of an unknown field.
QuotingText = Annotated[str, AfterValidator(_encodable)]


class FieldError(BaseModel):
    """One thing wrong with a request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    where: QuotingText = Field(description="The field, as `prompt` or `seed[2]`.")
    what: QuotingText = Field(description="What is wrong with it.")
    limit: QuotingText | None = Field(default=None, description="The limit that it breaks.")


class TaskError(BaseModel):
    """Why a task failed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: ErrorCode | str = Field(description="One of a later version is kept as it came.")
    message: QuotingText = Field(description="For a person: what happened and what to do.")
    retryable: bool = Field(description="Whether it may succeed under a new id.")
    details: dict[str, Any] = Field(
        # Published in the schema, hence the old name: `Fault` is `FieldError`.
        default_factory=dict,
        description="`faults` where the request is refused, each a `Fault`.",
    )


class GenerationError(Exception):
    """Base class of all errors that the clients raise."""


class InvalidRequest(GenerationError, ValueError):
    """The request breaks the contract; `faults` has every error in it."""

    def __init__(self, faults: Sequence[FieldError]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{fault.where}: {fault.what}" for fault in self.faults))

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[FieldError, ...]]]:
        """Keep `faults` when pickled: process pools and Celery pass exceptions that way."""
        return type(self), (self.faults,)


class TaskNotFound(GenerationError, LookupError):
    """There is no record of the task: it was never submitted, or its record has expired."""


class ServiceUnavailable(GenerationError, ConnectionError):
    """Redis did not answer in time, or refused this user. The call may be repeated."""


class WaitTimeout(GenerationError, TimeoutError):
    """The task did not end, or had no event, within the time given. The task continues."""


class GenerationFailed(GenerationError):
    """The task ended as `failed`. `args` are the four fields of `TaskError`.

    Celery stores `args`, so `AsyncResult.get()` raises an equal exception.
    """

    def __init__(
        self,
        code: str,
        message: str,
        retryable: bool = False,  # noqa: FBT001, FBT002  # Celery passes `args` by position
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message, retryable, details or {})

    @classmethod
    def of(cls, error: TaskError) -> GenerationFailed:
        """The exception for an error on the wire."""
        return cls(str(error.code), error.message, error.retryable, error.details)

    @property
    def error(self) -> TaskError:
        """The error as data."""
        code, message, retryable, details = self.args
        return TaskError(code=code, message=message, retryable=retryable, details=details)

    def __str__(self) -> str:
        code, message, _, _ = self.args
        return f"{code}: {message}"


class GenerationExpired(GenerationFailed):
    """The deadline passed before the task ended."""

    @classmethod
    def at(cls, step: int) -> GenerationExpired:
        """The exception for a deadline that passed after `step` steps."""
        return cls(ErrorCode.DEADLINE_EXCEEDED.value, f"the deadline passed at step {step}")


class GenerationCancelled(GenerationError):
    """The task was cancelled."""

    @classmethod
    def at(cls, step: int) -> GenerationCancelled:
        """The exception for a cancellation after `step` steps."""
        return cls(f"cancelled at step {step}")
