"""Priorities in the plan of a call: the most urgent go first, and none starves."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from tests.engine.simulated_calls import BUCKETS, PURE, Crowd, Simulated, age, candidates
from worker.engine.batch_scheduler import CALLS_PER_TURN, Bucket, Candidate, Scheduler

PRIORITY = st.integers(0, 9)


@st.composite
def prioritized(draw: st.DrawFn) -> list[Candidate]:
    """Candidates in which each job has a priority."""
    priorities = draw(st.lists(PRIORITY, min_size=10, max_size=10))
    return [replace(each, priority=priorities[each.job]) for each in draw(candidates())]


ROUNDS = st.lists(prioritized(), min_size=1, max_size=12)


class WithoutPriorities:
    """The scheduler as it was before jobs had priorities."""

    def __init__(self) -> None:
        self._calls = 0
        self._served: dict[Bucket, int] = {}

    def plan(self, waiting: list[Candidate], limit_rows: int) -> list[Candidate]:
        """The candidates of the next call."""
        by_age = sorted(waiting, key=age)
        present = {each.bucket for each in by_age}
        new = present - self._served.keys()
        self._served = {each: self._served.get(each, self._calls) for each in present}
        if not by_age:
            return []
        bucket = min(
            (each.bucket for each in by_age),
            key=lambda each: (self._served[each], each not in new),
        )
        self._calls += 1
        self._served[bucket] = self._calls
        first, *others = (each for each in by_age if each.bucket == bucket)
        chosen, left_rows = [first], limit_rows - first.rows
        for each in sorted(others, key=lambda each: not each.fresh):
            if each.rows <= left_rows:
                chosen.append(each)
                left_rows -= each.rows
        return chosen


@PURE
@given(rounds=ROUNDS, priority=PRIORITY, limit_rows=st.integers(1, 12))
def test_equal_priorities_change_nothing(
    rounds: list[list[Candidate]], priority: int, limit_rows: int
) -> None:
    """Calls of equal priorities have the rows that they have without priorities, in order."""
    before, now = WithoutPriorities(), Scheduler()
    for waiting in rounds:
        equal = [replace(each, priority=priority) for each in waiting]
        if equal:  # without candidates no call is made
            assert now.plan(equal, lambda _: limit_rows) == before.plan(equal, limit_rows)


@PURE
@given(rounds=ROUNDS)
def test_a_call_that_takes_all_is_the_same(rounds: list[list[Candidate]]) -> None:
    """A call into which all rows fit has them in the order without priorities."""
    before, now = WithoutPriorities(), Scheduler()
    for waiting in rounds:
        one_bucket = [replace(each, bucket=BUCKETS[0]) for each in waiting]
        if one_bucket:
            assert now.plan(one_bucket, lambda _: 99) == before.plan(one_bucket, 99)


@PURE
@given(rounds=ROUNDS, limit_rows=st.integers(1, 12))
def test_a_call_has_the_most_urgent(rounds: list[list[Candidate]], limit_rows: int) -> None:
    """An image of the highest priority is in each call, but for one of `CALLS_PER_TURN` - 1.

    A candidate that is left out does not fit beside the first and those of its own and higher
    priority.
    """
    scheduler, calls_with = Scheduler(), 0
    for waiting in filter(None, rounds):
        plan = scheduler.plan(waiting, lambda _: limit_rows)
        highest = min(each.priority for each in waiting)
        has_highest = any(each.priority == highest for each in plan)
        assert has_highest or calls_with >= CALLS_PER_TURN - 2
        calls_with = calls_with + 1 if has_highest else 0
        for left in set(waiting) - set(plan):
            if left.bucket == plan[0].bucket:
                rows = sum(each.rows for each in plan if each.priority <= left.priority)
                most = max((each.rows for each in plan if each.priority > left.priority), default=0)
                assert rows + most + left.rows > limit_rows


#: Calls without the oldest image, which is alone in its bucket: its turn is near.
TURN_IS_NEAR = [Candidate(0, 0, BUCKETS[1], 1, priority=5), Candidate(1, 0, BUCKETS[0], 1)]


@PURE
@given(
    others=st.lists(candidates(), min_size=1, max_size=9),
    priorities=st.lists(st.integers(1, 9), min_size=10, max_size=10),
    limit_rows=st.integers(1, 12),
    bucket=st.sampled_from(BUCKETS),
    rows=st.integers(1, 2),
)
@example([TURN_IS_NEAR] * 6, [5, 4] * 5, 2, BUCKETS[0], 2)
@example([TURN_IS_NEAR] * 7, [5, 4] * 5, 2, BUCKETS[0], 2)
@example([TURN_IS_NEAR] * 8, [5, 4] * 5, 2, BUCKETS[0], 2)
def test_the_next_call_has_a_job_of_priority_0(
    others: list[list[Candidate]],
    priorities: list[int],
    limit_rows: int,
    bucket: Bucket,
    rows: int,
) -> None:
    """A job of priority 0 is in the next call, whatever of lower priority ran before and runs.

    Afterwards it is in each call, but for one of `CALLS_PER_TURN` - 1.
    """
    scheduler = Scheduler()
    *before, during = (
        [replace(each, priority=priorities[each.job]) for each in waiting] for waiting in others
    )
    for waiting in before:
        scheduler.plan(waiting, lambda _: limit_rows)
    urgent = Candidate(99, 0, bucket, rows, fresh=True, priority=0)
    assert urgent in scheduler.plan([*during, urgent], lambda _: limit_rows)
    later = replace(urgent, fresh=False)
    plans = [scheduler.plan([*during, later], lambda _: limit_rows) for _ in range(7)]
    assert sum(later in plan for plan in plans) >= CALLS_PER_TURN - 2


@PURE
@given(
    endless=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 2), PRIORITY), min_size=1, max_size=8
    ),
    arrivals=st.lists(st.none() | st.tuples(st.integers(0, 2), PRIORITY), max_size=8),
    limit_rows=st.integers(1, 6),
)
@example([(0, 2, 9), (0, 2, 0), (1, 2, 9), (1, 2, 0)], [], 2)
def test_the_oldest_has_its_turn(
    endless: list[tuple[int, int, int]],
    arrivals: list[tuple[int, int] | None],
    limit_rows: int,
) -> None:
    """Of B buckets the oldest image of each is in one of B x `CALLS_PER_TURN` calls.

    Whatever its priority, and whatever runs beside it or arrives for a call. So a job of priority 9
    starves no more than without priorities, only `CALLS_PER_TURN` times as long.
    """
    running = [
        Candidate(number, 0, BUCKETS[bucket], rows, priority=priority)
        for number, (bucket, rows, priority) in enumerate(endless)
    ]
    most = CALLS_PER_TURN * len({each.bucket for each in running})
    oldest = {each.bucket: each for each in reversed(running)}
    scheduler, waited = Scheduler(), dict.fromkeys(oldest.values(), 0)
    for number in range(3 * CALLS_PER_TURN * 3):
        arrival = arrivals[number % len(arrivals)] if arrivals else None
        here = list(running)
        if arrival is not None and BUCKETS[arrival[0]] in oldest:
            bucket, priority = arrival
            here.append(Candidate(100 + number, 0, BUCKETS[bucket], 2, True, priority))
        plan = scheduler.plan(here, lambda _: limit_rows)
        for each in waited:
            waited[each] = 0 if each in plan else waited[each] + 1
            assert waited[each] < most


PHASES = st.sampled_from([(2, 1), (1, 1), (2,), (1,)])


@PURE
@given(
    st.lists(
        st.tuples(st.integers(1, 5), PHASES, st.booleans(), PRIORITY), min_size=1, max_size=12
    ),
    st.integers(1, 6),
)
def test_every_job_of_any_priority_is_done_in_time(
    jobs: list[tuple[int, tuple[int, ...], bool, int]], limit_rows: int
) -> None:
    """Every job is done in `CALLS_PER_TURN` times the calls that it and older jobs still need."""
    pictures: list[Simulated] = []
    arrives = 0
    for number, (evaluations, phases, later, priority) in enumerate(jobs):
        arrives += later
        pictures.append(Simulated(number, evaluations, phases, arrives, priority))
    crowd = Crowd(pictures, limit_rows, CALLS_PER_TURN)
    for now in range(arrives + sum(each.left for each in pictures)):
        crowd.make_round(now)
    assert all(each.left == 0 for each in pictures)
