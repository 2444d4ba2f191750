"""Laws for the tasks that waited below those of the schedule."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from api_contracts.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.evidence import Evidence
    from tests.chaos.others import Other
    from tests.chaos.stream_laws import Broken


def others_are_kept(evidence: Evidence) -> Broken:
    """Each of the other tasks has ended, or waits with record, message and place among the open."""
    for task_id, each in evidence.others.items():
        if each.status is None:
            yield task_id, "no record"
        elif each.has_ended:
            continue
        elif each.status != "queued":
            yield task_id, f"{each.status}, and no worker runs"
        elif not each.messages:
            yield task_id, "queued, without a message"
        elif not each.is_open:
            yield task_id, "queued, and not among the open tasks"


def others_end_once(evidence: Evidence) -> Broken:
    """An ended one of the others has one terminal event, its last; a waiting one has none."""
    for task_id, each in evidence.others.items():
        wanted = [each.status] if each.has_ended else []
        if each.ends != wanted:
            yield task_id, f"{each.status}, with the ends {each.ends}"
        elif wanted and each.events[-1][1] != each.status:
            yield task_id, f"ends with {each.events[-1][1]}"


def others_have_whole_streams(evidence: Evidence) -> Broken:
    """The events of each other task are numbered 1, 2, 3 …, from `queued` on."""
    for task_id, each in evidence.others.items():
        numbers = [number for number, _ in each.events]
        if numbers != list(range(1, len(numbers) + 1)) or each.events[:1] != ((1, "queued"),):
            yield task_id, f"entries {each.events}"


def others_make_one_picture(evidence: Evidence) -> Broken:
    """Other tasks that workers ran succeed with the same bytes, unless a store refused these.

    They have one request. No reference has it: the file names the priority.
    """
    ended = {task_id: each for task_id, each in evidence.others.items() if each.has_ended}
    made = {task_id: _pictures(each) for task_id, each in ended.items()}
    usual = Counter(each for each in made.values() if each).most_common(1)
    for task_id, each in ended.items():
        if made[task_id] is None and not _was_refused(each):
            yield task_id, f"{each.status}: {each.outcome}"
        elif made[task_id] not in (None, usual[0][0]):
            yield task_id, f"other bytes than most: {made[task_id]}"


def _pictures(each: Other) -> tuple[str, ...] | None:
    if each.status != "succeeded":
        return None
    return tuple(image["sha256"] for image in each.outcome["images"])


def _was_refused(each: Other) -> bool:
    """Whether the task failed as a store without conditional writes makes it fail."""
    return (
        each.status == "failed"
        and each.outcome.get("code") == ErrorCode.STORAGE_UNAVAILABLE
        and "SAG_S3_CONDITIONAL_WRITES" in each.outcome["message"]
    )


LAWS: tuple[Callable[[Evidence], Broken], ...] = (
    others_are_kept,
    others_end_once,
    others_have_whole_streams,
    others_make_one_picture,
)
