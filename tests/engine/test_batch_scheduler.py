"""Which rows go into the next UNet call: laws of the scheduler for any order of arrivals."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.contracts.test_imports import HEAVY, imported
from tests.engine.simulated_calls import BUCKETS, PURE, Crowd, Simulated, age, candidates
from worker.engine.batch_scheduler import Bucket, Candidate, Scheduler


@PURE
@given(rounds=st.lists(candidates(), min_size=1, max_size=5), limit_rows=st.integers(1, 12))
def test_a_plan_is_a_call(rounds: list[list[Candidate]], limit_rows: int) -> None:
    """A plan has one bucket, no duplicates, the oldest first, and at most the limit or one image.

    It is empty only without candidates.
    """
    scheduler = Scheduler()
    for waiting in rounds:
        plan = scheduler.plan(waiting, lambda _: limit_rows)
        assert bool(plan) == bool(waiting)
        if plan:
            (bucket,) = {each.bucket for each in plan}
            assert len(set(plan)) == len(plan)
            assert set(plan) <= set(waiting)
            assert plan[0] == min((each for each in waiting if each.bucket == bucket), key=age)
            assert len(plan) == 1 or sum(each.rows for each in plan) <= limit_rows


@PURE
@given(waiting=candidates())
def test_the_limit_is_asked_for_two_and_more(waiting: list[Candidate]) -> None:
    """The limit is not asked for a candidate that is alone in its bucket: it is always taken."""
    asked: list[Bucket] = []

    def limit(bucket: Bucket) -> int:
        asked.append(bucket)
        return 64

    plan = Scheduler().plan(waiting, limit)
    alone = sum(each.bucket == plan[0].bucket for each in waiting) == 1 if plan else True
    assert asked == ([] if alone else [plan[0].bucket])


@PURE
@given(waiting=candidates(), limit_rows=st.integers(1, 12))
def test_a_call_is_as_full_as_those_before_allow(waiting: list[Candidate], limit_rows: int) -> None:
    """A candidate that is left out does not fit beside those that go before it.

    First the oldest, then those without a step, then the others, each by age.
    """
    plan = Scheduler().plan(waiting, lambda _: limit_rows)

    def turn(each: Candidate) -> tuple[bool, bool, tuple[int, int]]:
        return each != plan[0], not each.fresh, age(each)

    for left in set(waiting) - set(plan):
        if left.bucket == plan[0].bucket:
            before = sum(each.rows for each in plan if turn(each) < turn(left))
            assert before + left.rows > limit_rows


@PURE
@given(
    rounds=st.lists(candidates(), min_size=1, max_size=6),
    limits=st.lists(st.integers(1, 12), min_size=len(BUCKETS), max_size=len(BUCKETS)),
    seed=st.integers(0, 999),
)
def test_the_same_in_the_same_out(
    rounds: list[list[Candidate]], limits: list[int], seed: int
) -> None:
    """The order of the candidates changes nothing, and none is lost.

    The limit is that of the plan's bucket.
    """
    rows = dict(zip(BUCKETS, limits, strict=True))
    first, second = Scheduler(), Scheduler()
    for waiting in rounds:
        given_in = list(waiting)
        plan = first.plan(waiting, rows.__getitem__)
        assert waiting == given_in
        shuffled = random.Random(seed).sample(waiting, len(waiting))
        assert second.plan(shuffled, rows.__getitem__) == plan
        if len(plan) > 1:
            assert sum(each.rows for each in plan) <= rows[plan[0].bucket]


@PURE
@given(
    st.lists(
        st.sets(st.integers(0, len(BUCKETS) - 1), min_size=1).flatmap(
            lambda present: st.permutations(sorted(present))
        ),
        min_size=2,
        max_size=30,
    )
)
@example([[0], [0, 1], [0, 2], [0, 1], [0, 2]])
def test_no_bucket_starves(rounds: list[list[int]]) -> None:
    """Of N buckets each is served within N calls while it has candidates, whatever arrives.

    Each entry lists the buckets that have candidates at a call, that of the oldest job first.
    """
    scheduler, served = Scheduler(), []
    for present in rounds:
        waiting = [Candidate(job, 0, BUCKETS[each], 1) for job, each in enumerate(present)]
        plan = scheduler.plan(waiting, lambda _: 4)
        served.append(BUCKETS.index(plan[0].bucket))
    for begin, present in enumerate(rounds):
        window = range(begin, begin + len(present))
        if window.stop > len(rounds):
            continue
        always = set(present).intersection(*(rounds[number] for number in window))
        assert always <= {served[number] for number in window}


@PURE
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([(2, 1), (1, 1), (2,), (1,)]), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 6),
)
def test_every_job_is_done_in_time(
    jobs: list[tuple[int, tuple[int, ...], bool]], limit_rows: int
) -> None:
    """A job takes at most the calls that it and older jobs still need, whatever arrives later.

    The oldest is in every call, so the bound holds at any limit. With a limit for all of them, each
    job takes the calls that it needs alone.
    """
    pictures: list[Simulated] = []
    arrives = 0
    for number, (evaluations, phases, later) in enumerate(jobs):
        arrives += later
        pictures.append(Simulated(number, evaluations, phases, arrives))
    crowd = Crowd(pictures, limit_rows)
    rounds = arrives + sum(each.left for each in pictures)
    for now in range(rounds):
        crowd.make_round(now)
    assert all(each.left == 0 for each in pictures)
    ample = Crowd([Simulated(each.job, *jobs[each.job][:2], 0) for each in pictures], 24)
    for now in range(max(each.left for each in ample.pictures)):
        ample.make_round(now)
    assert all(each.left == 0 for each in ample.pictures)


@pytest.mark.parametrize("module", ["batch_scheduler", "job", "engine", "pipeline"])
def test_no_torch_to_plan(module: str) -> None:
    """Scheduler, jobs and engine are imported without torch and other large packages."""
    _, names = imported(f"worker.engine.{module}")
    assert "worker" in names
    assert not names & HEAVY
