"""What a claim grants, and what Redis answers to a claim and to every write after it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from worker.job_control import Stop

if TYPE_CHECKING:
    from collections.abc import Mapping


class ClaimAnswer(StrEnum):
    """Whether a claimed task may run, or why it must end at once."""

    RUN = "run"
    CANCELLED = "cancelled"
    #: The task's own deadline has passed.
    EXPIRED = "expired"
    #: The message's time limit has passed: Celery's `expires`.
    OVERDUE = "overdue"
    #: All attempts are used up.
    EXHAUSTED = "exhausted"


class WriteAnswer(Enum):
    """A script's answer to a write, which checks the token of the claim."""

    #: Another worker has claimed or ended the task; nothing was written.
    SUPERSEDED = -1
    WRITTEN = 0
    #: The task is to be cancelled. A requeue is not written then, every other write is.
    CANCEL_REQUESTED = 1

    @property
    def stop(self) -> Stop | None:
        """Why the task must stop; None when it may continue."""
        match self:
            case WriteAnswer.SUPERSEDED:
                return Stop.SUPERSEDED
            case WriteAnswer.WRITTEN:
                return None
            case WriteAnswer.CANCEL_REQUESTED:
                return Stop.CANCELLED


@dataclass(frozen=True)
class Claim:
    """The right to write to a task until another worker claims it."""

    task_id: str
    answer: ClaimAnswer
    #: How many claims the task has had.
    fence: int
    #: Random; what writes are checked by. After a failover that lost a claim, another worker's
    #: claim may have the same fence.
    token: str
    attempt: int
    #: By Redis's clock, in Unix seconds.
    submitted_at_s: float
    claimed_at_s: float
    #: Step of the checkpoint that an earlier attempt saved; 0 without one.
    checkpoint_step: int = 0
    #: When the task was submitted, or at a later claim requeued or since then last sent again; or
    #: when the attempt of `lost_owner` began. By Redis's clock, at most `claimed_at_s`; 0 where the
    #: record has no such moment, or the answer was lost and the claim repeated.
    since_s: float = 0.0
    #: Whose lease had expired: it died during its attempt, or was cut off from Redis. '' for a
    #: queued task.
    lost_owner: str = ""

    @property
    def queued_s(self) -> float:
        """Seconds from submission, which a producer may have set, to the claim.

        0 for a submission in the future, as after a failover that set Redis's clock back; and one
        before 1970 counts as 1970: sums of waits stay finite.
        """
        return self.claimed_at_s - min(max(0.0, self.submitted_at_s), self.claimed_at_s)


class NewEvent(NamedTuple):
    """An event that is to be written under a claim, without what the record adds to it."""

    claim: Claim
    kind: str
    fields: Mapping[str, Any]


class NewCheckpoint(NamedTuple):
    """A checkpoint that is to be written under a claim."""

    claim: Claim
    step: int
    #: As safetensors.
    state: bytes


@dataclass(frozen=True)
class Held:
    """The message is a duplicate: another worker runs the task."""

    owner: str


@dataclass(frozen=True)
class Ended:
    """The task has ended before, as `status`, with this outcome."""

    status: str
    outcome: dict[str, Any]
