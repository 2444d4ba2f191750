"""Laws for the streams of events, those who write them and the clients that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from api_contracts.events import Cancelled, Event, Expired, Failed, Requeued, Started, Succeeded
from tests.chaos.submissions import Expected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.evidence import Evidence

#: Violations: the task or key, and how the law is broken.
Broken: TypeAlias = "Iterator[tuple[str, str]]"

#: This number of tasks, or this share of them, may be taken from a living worker.
TAKEOVERS, TAKEOVERS_SHARE = 2, 0.02


def every_task_ends(evidence: Evidence) -> Broken:
    """Every task that was submitted ends."""
    for task_id, submission in evidence.submissions.items():
        if evidence.end(task_id) is None:
            record = evidence.records.get(task_id)
            yield task_id, f"{submission.sender}: {record.status if record else 'no record'}"


def one_end(evidence: Evidence) -> Broken:
    """No task ends twice."""
    for task_id in evidence.submissions:
        ends = [event.type for event in evidence.events_of(task_id) if event.is_terminal]
        if len(ends) > 1:
            yield task_id, " and ".join(ends)


def nothing_after_the_end(evidence: Evidence) -> Broken:
    """The end is a stream's last event."""
    for task_id in evidence.submissions:
        events = evidence.events_of(task_id)
        if evidence.end(task_id) is not None and not events[-1].is_terminal:
            yield task_id, f"ends with {events[-1].type}"


def numbers_without_gaps(evidence: Evidence) -> Broken:
    """A stream's entries are numbered 1, 2, 3 …, and each event has its entry's number."""
    for task_id, stream in evidence.streams.items():
        numbers = [entry.seq for entry in stream]
        if numbers != list(range(1, len(stream) + 1)):
            yield task_id, f"entries {numbers}"
        if any(each.event is not None and each.event.seq != each.seq for each in stream):
            yield task_id, "an event's number differs from its entry's"


def attempts_never_fall(evidence: Evidence) -> Broken:
    """The attempt never decreases, except that a requeue may take back one."""
    for task_id in evidence.submissions:
        least = 0
        for event in evidence.events_of(task_id):
            if event.attempt < least:
                yield task_id, f"event {event.seq} is of attempt {event.attempt} after {least}"
            least = event.attempt - 1 if isinstance(event, Requeued) else event.attempt


def one_owner(evidence: Evidence) -> Broken:
    """After `started` only that worker writes events, until the next `started`."""
    for task_id in evidence.submissions:
        owner: str | None = None
        attempt = 0
        for event in evidence.events_of(task_id):
            if isinstance(event, Started):
                if event.attempt == attempt:
                    yield task_id, f"event {event.seq} starts attempt {attempt} again"
                owner, attempt = event.worker, event.attempt
            elif _is_owners(event) and event.worker != owner:
                yield (
                    task_id,
                    f"event {event.seq}, {event.type}, is {event.worker}'s, not {owner}'s",
                )
            elif isinstance(event, Requeued):
                owner, attempt = None, 0


def _is_owners(event: Event) -> bool:
    """Whether only the owner may write it: every end but success may be written by a claim."""
    if event.is_terminal:
        return isinstance(event, Succeeded)
    return event.type not in ("queued", "requeued")


def one_fence_one_claim(evidence: Evidence) -> Broken:
    """No two processes hold the same fence of a task."""
    holders: dict[tuple[str, int], str] = {}
    for claim in evidence.claims:
        holder = holders.setdefault((claim.task_id, claim.fence), str(claim.child))
        if holder != str(claim.child):
            yield claim.task_id, f"fence {claim.fence} is held by {holder} and {claim.child}"


def no_takeover_from_a_living_worker(evidence: Evidence) -> Broken:
    """Few tasks are taken from a living worker that no fault hit.

    Some may be: a worker that gets no processor time for longer than its lease looks dead.
    """
    if len(evidence.takeovers) > max(TAKEOVERS, TAKEOVERS_SHARE * len(evidence.submissions)):
        yield from evidence.takeovers


def clients_read_the_stream(evidence: Evidence) -> Broken:
    """A client that follows a task reads its stream: each event once, in order, up to the end."""
    for task_id in evidence.submissions:
        stream, seen = evidence.events_of(task_id), list(evidence.client_events.get(task_id, ()))
        if evidence.end(task_id) is None:
            stream = stream[: len(seen)]
        if seen != stream:
            read = [f"{event.seq} {event.type}" for event in seen]
            yield task_id, f"read {read}, written {[f'{e.seq} {e.type}' for e in stream]}"


def clients_raise_documented_errors(evidence: Evidence) -> Broken:
    """A client raises only documented errors."""
    yield from evidence.client_errors


def ends_are_expected(evidence: Evidence) -> Broken:
    """Only cancelled tasks end `cancelled`; only those that must fail do, with their code."""
    for task_id, submission in evidence.submissions.items():
        match evidence.end(task_id):
            case Cancelled() if task_id not in evidence.cancels:
                yield task_id, "cancelled without a request"
            case Failed(error=error) if error.code != submission.expects.value:
                if task_id in evidence.refused_writes:
                    continue
                yield task_id, f"failed: {error.code}: {error.message}"
            case Succeeded() if submission.expects is not Expected.PICTURES:
                yield task_id, f"succeeded instead of {submission.expects}"
            case Expired() if submission.expects is not Expected.NOT_LOADED:
                yield task_id, "expired without a deadline"
