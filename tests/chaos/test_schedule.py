"""Orders and faults are functions of the seed."""

from __future__ import annotations

from itertools import islice

from api_contracts.names import is_task_id
from api_contracts.parse import parse_request
from tests.chaos.orders import Expect, Way, litter, message, orders, pool, request_of
from tests.chaos.schedule import ON_LINK, ON_MACHINE, WEIGHTS, Kind, faults


def test_one_seed_is_one_schedule() -> None:
    """The same seed gives the same faults, another seed others."""
    first, again, other = (list(islice(faults(seed, set(Kind), 4, 2.0), 200)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_every_kind_comes_in_its_turn_and_within_its_bounds() -> None:
    """A round of the bag has each kind by its weight; pauses have the mean that was asked for."""
    size = sum(weight for weight, _ in WEIGHTS.values())
    drawn = list(islice(faults(7, set(Kind), 4, 2.0), 20 * size))
    for start in range(0, len(drawn), size):
        kinds = [fault.kind for fault in drawn[start : start + size]]
        assert {kind: kinds.count(kind) for kind in Kind} == {k: w for k, (w, _) in WEIGHTS.items()}
    assert 1.9 < sum(fault.after_s for fault in drawn) / len(drawn) < 2.1
    for fault in drawn:
        shortest_s, longest_s = WEIGHTS[fault.kind][1]
        assert shortest_s <= fault.lasts_s <= longest_s
        assert fault.target < (5 if fault.kind in ON_LINK else 4)
    assert {fault.target for fault in drawn if fault.kind in ON_MACHINE} == set(range(4))


def test_a_choice_of_kinds_is_kept_to() -> None:
    """Only what was asked for is drawn; of nothing, nothing."""
    chosen = {Kind.FREEZE, Kind.RESET}
    assert {fault.kind for fault in islice(faults(1, chosen, 2, 1.0), 50)} == chosen
    assert list(faults(1, (), 2, 1.0)) == []


def test_one_seed_is_one_load() -> None:
    """The same seed gives the same orders: the ways in proportion, with some trouble."""
    first, again = (list(orders(7, 2000, 24, 500)) for _ in range(2))
    assert first == again
    ways = [order.way for order in first]
    assert 0.6 < ways.count(Way.CLIENT) / len(ways) < 0.8
    assert [order.expects for order in first].count(Expect.EXHAUSTED) == 4
    assert {order.again.value for order in first} == {"never", "at once", "later"}
    assert all(is_task_id(order.task_id) for order in first)
    assert all(order.way is Way.RAW for order in first if order.expects is Expect.REFUSED)


def test_requests_are_distinct_and_served() -> None:
    """No two requests of the pool are alike, each is valid, poisoned or not; some make two."""
    requests = pool(7, 24)
    assert len({str(request) for request in requests}) == 24
    assert {request["num_images_per_prompt"] for request in requests} == {1, 2}
    for order in orders(7, 100, 24, 20):
        parse_request(request_of(order, requests))
        assert (b"invalid" in message(order, {})) is False
    assert len({litter(number) for number in range(6)}) == 6
