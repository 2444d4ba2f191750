"""Submissions and faults are functions of the seed."""

from __future__ import annotations

from itertools import islice

from api_contracts.names import is_task_id
from api_contracts.parse import parse_request
from tests.chaos.fault_schedule import ON_LINK, ON_MACHINE, WEIGHTS, FaultKind, faults, possible
from tests.chaos.submissions import (
    Expected,
    Sender,
    draw_submissions,
    garbage,
    message,
    request_of,
    request_pool,
)


def test_one_seed_is_one_schedule() -> None:
    """The same seed gives the same faults, another seed others."""
    first, again, other = (
        list(islice(faults(seed, set(FaultKind), 4, 2.0), 200)) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_kinds_follow_their_weights_and_bounds() -> None:
    """Each round of the bag has every kind by its weight; pauses have the requested mean."""
    size = sum(weight for weight, _ in WEIGHTS.values())
    drawn = list(islice(faults(7, set(FaultKind), 4, 2.0), 20 * size))
    for start in range(0, len(drawn), size):
        kinds = [fault.kind for fault in drawn[start : start + size]]
        assert {kind: kinds.count(kind) for kind in FaultKind} == {
            k: w for k, (w, _) in WEIGHTS.items()
        }
    assert 1.9 < sum(fault.after_s for fault in drawn) / len(drawn) < 2.1
    for fault in drawn:
        shortest_s, longest_s = WEIGHTS[fault.kind][1]
        assert shortest_s <= fault.lasts_s <= longest_s
        assert fault.target < (5 if fault.kind in ON_LINK else 4)
    assert {fault.target for fault in drawn if fault.kind in ON_MACHINE} == set(range(4))


def test_only_the_chosen_kinds_are_drawn() -> None:
    """Only the given kinds are drawn; without a kind there is no fault."""
    chosen = {FaultKind.FREEZE, FaultKind.RESET}
    assert {fault.kind for fault in islice(faults(1, chosen, 2, 1.0), 50)} == chosen
    assert list(faults(1, (), 2, 1.0)) == []


def test_failovers_are_for_sentinels_alone() -> None:
    """Without sentinels a seed has the schedule that it had; with them no link is disturbed."""
    alone, watched = (possible(set(FaultKind), sentinel=each) for each in (False, True))
    assert alone == set(FaultKind) - {FaultKind.FAILOVER}
    assert FaultKind.FAILOVER in watched
    assert not watched & ON_LINK
    assert possible({FaultKind.FREEZE}, sentinel=True) == {FaultKind.FREEZE}


def test_one_seed_is_one_load() -> None:
    """The same seed gives the same submissions: senders by their shares, some of them faulty."""
    first, again = (list(draw_submissions(7, 2000, 24, 500)) for _ in range(2))
    assert first == again
    ways = [submission.sender for submission in first]
    assert 0.6 < ways.count(Sender.CLIENT) / len(ways) < 0.8
    assert [submission.expects for submission in first].count(Expected.EXHAUSTED) == 4
    assert {submission.resubmit.value for submission in first} == {"never", "at once", "later"}
    assert all(is_task_id(submission.task_id) for submission in first)
    assert all(
        submission.sender is Sender.RAW
        for submission in first
        if submission.expects is Expected.REFUSED
    )


def test_requests_are_distinct_and_served() -> None:
    """No two requests of the pool are equal, each is valid, and some are for two pictures."""
    requests = request_pool(7, 24)
    assert len({str(request) for request in requests}) == 24
    assert {request["num_images_per_prompt"] for request in requests} == {1, 2}
    for submission in draw_submissions(7, 100, 24, 20):
        parse_request(request_of(submission, requests))
        assert (b"invalid" in message(submission, {})) is False
    assert len({garbage(number) for number in range(6)}) == 6
