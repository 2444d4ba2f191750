"""What must hold for the streams of events, for who wrote them and for who read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from api_contracts.events import Cancelled, Event, Expired, Failed, Requeued, Started, Succeeded
from tests.chaos.orders import Expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.evidence import Evidence

#: Of which task or key, and how it is broken.
Broken: TypeAlias = "Iterator[tuple[str, str]]"

#: So many tasks, or this share of them, may be taken from a living worker.
ROBBED_MOST, ROBBED_SHARE = 2, 0.02


def none_is_lost(evidence: Evidence) -> Broken:
    """Every task that was submitted ends."""
    for task_id, order in evidence.orders.items():
        if evidence.end(task_id) is None:
            record = evidence.records.get(task_id)
            yield task_id, f"{order.way}: {record.status if record else 'no record'}"


def one_end(evidence: Evidence) -> Broken:
    """No task ends twice."""
    for task_id in evidence.orders:
        ends = [event.type for event in evidence.known(task_id) if event.is_terminal]
        if len(ends) > 1:
            yield task_id, " and ".join(ends)


def nothing_after_the_end(evidence: Evidence) -> Broken:
    """The end is a stream's last event."""
    for task_id in evidence.orders:
        events = evidence.known(task_id)
        if evidence.end(task_id) is not None and not events[-1].is_terminal:
            yield task_id, f"ends with {events[-1].type}"


def numbers_without_gaps(evidence: Evidence) -> Broken:
    """A stream's events are numbered 1, 2, 3 …, the event as its entry."""
    for task_id, stream in evidence.streams.items():
        numbers = [told.seq for told in stream]
        if numbers != list(range(1, len(stream) + 1)):
            yield task_id, f"entries {numbers}"
        if any(told.event is not None and told.event.seq != told.seq for told in stream):
            yield task_id, "an event has another number than its entry"


def attempts_never_fall(evidence: Evidence) -> Broken:
    """The attempt only grows; but one that was given back is counted anew."""
    for task_id in evidence.orders:
        least = 0
        for event in evidence.known(task_id):
            if event.attempt < least:
                yield task_id, f"event {event.seq} is of attempt {event.attempt} after {least}"
            least = event.attempt - 1 if isinstance(event, Requeued) else event.attempt


def one_owner(evidence: Evidence) -> Broken:
    """From a start on only who started tells, until somebody starts the next attempt."""
    for task_id in evidence.orders:
        owner: str | None = None
        attempt = 0
        for event in evidence.known(task_id):
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
    """Whether only the owner may write it: ends but success may come from a claim to end it."""
    if event.is_terminal:
        return isinstance(event, Succeeded)
    return event.type not in ("queued", "requeued")


def one_fence_one_claim(evidence: Evidence) -> Broken:
    """No two processes were given one fence of a task."""
    holders: dict[tuple[str, int], str] = {}
    for claim in evidence.claims:
        who = holders.setdefault((claim.task_id, claim.fence), str(claim.child))
        if who != str(claim.child):
            yield claim.task_id, f"fence {claim.fence} is {who}'s and {claim.child}'s"


def no_living_owner_is_robbed(evidence: Evidence) -> Broken:
    """Hardly ever is a task taken from a worker that lives and that no fault hit.

    Rarely it may be: a worker that gets no processor for longer than its lease looks dead.
    """
    if len(evidence.robbed) > max(ROBBED_MOST, ROBBED_SHARE * len(evidence.orders)):
        yield from evidence.robbed


def client_saw_the_stream(evidence: Evidence) -> Broken:
    """Who followed a task was told its stream, each event once, in order, up to the end."""
    for task_id in evidence.orders:
        stream, seen = evidence.known(task_id), list(evidence.seen.get(task_id, ()))
        if evidence.end(task_id) is None:
            stream = stream[: len(seen)]
        if seen != stream:
            told = [f"{event.seq} {event.type}" for event in seen]
            yield task_id, f"told {told}, written {[f'{e.seq} {e.type}' for e in stream]}"


def clients_never_break(evidence: Evidence) -> Broken:
    """A client raises nothing but what it documents."""
    yield from evidence.broke


def ends_have_their_reason(evidence: Evidence) -> Broken:
    """Cancelled is what somebody cancelled, failed is what must fail and for that reason alone."""
    for task_id, order in evidence.orders.items():
        match evidence.end(task_id):
            case Cancelled() if task_id not in evidence.cancels:
                yield task_id, "cancelled, and nobody asked"
            case Failed(error=error) if error.code != order.expects.value:
                yield task_id, f"failed: {error.code}: {error.message}"
            case Succeeded() if order.expects is not Expect.PICTURES:
                yield task_id, f"succeeded instead of {order.expects}"
            case Expired():
                yield task_id, "expired, and had no deadline"
