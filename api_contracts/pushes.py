"""How far the pushes of an ended task have come: to another Celery application, to a webhook."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_TRIES = 1_000_000
MESSAGE_ID_PATTERN = r"^[A-Za-z0-9_:-]+:[0-9]+$"
#: What `message_id` gives, in words.
MESSAGE_ID = (
    "The task's id with a colon for each point, a colon, and the event's `seq`: the same each time."
)


class PushKind(StrEnum):
    """A way to push, by the request's field that asks for it."""

    REPLY_TO = "reply_to"
    WEBHOOK = "webhook"

    @property
    def field(self) -> str:
        """Of the record, where the state is kept."""
        return f"push_{self.value}"


class PushState(StrEnum):
    """Where a push is."""

    #: Set when the task has ended; tried until it is one of the others.
    WAITING = "waiting"
    #: The queue has it, or the webhook answered 2xx.
    DELIVERED = "delivered"
    #: Tried for as long as the settings say, or told never to come again.
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
    """The id of the message that pushes an event; no other event's.

    No task's id has a colon. A point divides what a webhook's signature is over.
    """
    return f"{task_id}:{seq}".replace(".", ":")


FIELDS = tuple(kind.field for kind in PushKind)


def pushes_of(values: Sequence[bytes | None]) -> dict[PushKind, Push]:
    """The pushes in a record's `FIELDS`; none before the task has ended."""
    found: Any = zip(PushKind, values, strict=True)
    return {kind: Push.model_validate_json(value) for kind, value in found if value}
