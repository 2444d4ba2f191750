"""Delivery state of the pushes of an ended task, to a Celery application or a webhook."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_TRIES = 1_000_000
MESSAGE_ID_PATTERN = r"^[A-Za-z0-9_:-]+:[0-9]+$"
#: Description of `message_id` in the published schemas.
MESSAGE_ID = (
    "The task's id with a colon for each point, a colon, and the event's `seq`: the same each time."
)


class PushKind(StrEnum):
    """How an end is pushed; the value is the request's field that asks for it."""

    REPLY_TO = "reply_to"
    WEBHOOK = "webhook"

    @property
    def field(self) -> str:
        """The field of the task's record that has the state."""
        return f"push_{self.value}"


class PushState(StrEnum):
    """State of a push."""

    #: Set when the task has ended; tried until delivered or given up.
    WAITING = "waiting"
    #: It is in the queue, or the webhook answered 2xx.
    DELIVERED = "delivered"
    #: Failed until the time limit of the settings, or refused permanently.
    GIVEN_UP = "given_up"


class Push(BaseModel):
    """One push of one task."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: PushState | str = Field(union_mode="left_to_right")
    tries: int = Field(default=0, ge=0, le=MAX_TRIES)
    first_at: AwareDatetime | None = Field(default=None, description="Of the first try, UTC.")
    last_at: AwareDatetime | None = Field(default=None, description="Of the last one, UTC.")
    error: str | None = Field(default=None, description="Why the last one failed.")


def message_id(task_id: str, seq: int) -> str:
    """A unique id for the message that pushes an event.

    Task ids have no colons, so replacing points keeps ids unique. Points are not allowed because
    they separate the parts that a webhook's signature covers.
    """
    return f"{task_id}:{seq}".replace(".", ":")


FIELDS = tuple(kind.field for kind in PushKind)


def pushes_of(values: Sequence[bytes | None]) -> dict[PushKind, Push]:
    """The pushes from the values of a record's `FIELDS`; empty before the task has ended."""
    found: Any = zip(PushKind, values, strict=True)
    return {kind: Push.model_validate_json(value) for kind, value in found if value}
