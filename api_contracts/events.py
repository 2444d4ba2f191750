"""The events of a task, in the order in which they occur, and its statuses."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # pydantic reads it at run time
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from api_contracts.errors import TaskError  # noqa: TC001  # pydantic reads it at run time
from api_contracts.result import GenerationResult  # noqa: TC001  # pydantic reads it at run time


class TaskStatus(StrEnum):
    """Status of a task. The last four are terminal: written once, never changed."""

    #: Set by `submit`, or by a worker that requeues the task. Next: a claim. No worker owns the
    #: task, so no crash changes it.
    QUEUED = "queued"
    #: Set by a claim. Next: whatever its owner writes, or, when the owner died, the claim of the
    #: redelivered message, as the next attempt.
    RUNNING = "running"
    #: Set by the owner once every file and the manifest are stored.
    SUCCEEDED = "succeeded"
    #: Set by the owner with an error.
    FAILED = "failed"
    #: Set by the owner at the step where it noticed the cancel request, or by the request itself
    #: while the task had no owner.
    CANCELLED = "cancelled"
    #: Set by the owner when the deadline passed, before or during the run.
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """Whether the task has ended."""
        return self not in (TaskStatus.QUEUED, TaskStatus.RUNNING)


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    task_id: str = Field(description="As in the message, and in every key.")
    seq: int = Field(ge=1, description="1, 2, 3 … without gaps.")
    attempt: int = Field(ge=0, description="0 before the first claim.")
    at: datetime = Field(description="UTC.")
    worker: str | None = Field(default=None, description="`host:name:random`; null without one.")
    metadata: dict[str, str] = Field(default_factory=dict, description="Of the request.")

    @property
    def is_terminal(self) -> bool:
        """Whether this is the task's last event."""
        return isinstance(self, Succeeded | Failed | Cancelled | Expired)


class Queued(_Event):
    """The task's record was written and its message follows."""

    type: Literal["queued"] = "queued"
    queue: str = Field(description="Where the message lies.")
    position: int | None = Field(
        default=None,
        description="Messages that lay before its own in its queue then, where that is known.",
    )


class Started(_Event):
    """A worker claimed the task."""

    type: Literal["started"] = "started"
    model: str = Field(description="Alias.")
    device: str = Field(description="As torch names it.")
    resumed_from_step: int | None = Field(
        default=None, description="Of an earlier attempt's checkpoint."
    )


class Loading(_Event):
    """The worker is building its pipeline."""

    type: Literal["loading"] = "loading"
    seconds_so_far: float = Field(ge=0, description="Since it began.")


class Progress(_Event):
    """So many denoising steps are done."""

    type: Literal["progress"] = "progress"
    step: int = Field(ge=0, description="Steps that are done.")
    total_steps: int = Field(ge=0, description="Of this task.")
    eta_s: float | None = Field(default=None, description="Seconds to the last step, if known.")
    preview: str | None = Field(default=None, description="A small picture as a data URL.")


class Uploading(_Event):
    """The pictures are made and on their way to S3."""

    type: Literal["uploading"] = "uploading"
    images: int = Field(ge=0, description="How many.")


class Requeued(_Event):
    """The worker gave the task back; another will take it."""

    type: Literal["requeued"] = "requeued"
    reason: str = Field(description="For a person.")


class Succeeded(_Event):
    """The end: everything is stored."""

    type: Literal["succeeded"] = "succeeded"
    result: GenerationResult


class Failed(_Event):
    """The end: an error."""

    type: Literal["failed"] = "failed"
    error: TaskError


class Cancelled(_Event):
    """The end: somebody asked for it."""

    type: Literal["cancelled"] = "cancelled"
    step: int = Field(ge=0, description="Steps that were done.")


class Expired(_Event):
    """The end: the deadline passed."""

    type: Literal["expired"] = "expired"
    step: int = Field(ge=0, description="Steps that were done.")


Event = Annotated[
    Queued
    | Started
    | Loading
    | Progress
    | Uploading
    | Requeued
    | Succeeded
    | Failed
    | Cancelled
    | Expired,
    Field(discriminator="type"),
]
#: The terminal event of a task.
End = Annotated[Succeeded | Failed | Cancelled | Expired, Field(discriminator="type")]

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
