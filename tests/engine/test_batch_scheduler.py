"""Which rows go into the next UNet call: laws of the scheduler for any order of arrivals."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.contracts.test_imports import HEAVY, imported
from worker.engine.batch_scheduler import (
    DECODE_BATCH,
    DECODE_WAIT_ROUNDS,
    Bucket,
    Candidate,
    Scheduler,
    admit,
    decode_due,
)

PURE = settings(deadline=None, derandomize=True, max_examples=150)
#: Each differs from the first in one field.
BUCKETS = (
    Bucket("a", 8, 8, 32, None),
    Bucket("b", 8, 8, 32, None),
    Bucket("a", 16, 8, 32, None),
    Bucket("a", 8, 16, 32, None),
    Bucket("a", 8, 8, 77, None),
    Bucket("a", 8, 8, 32, 0.5),
)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    """The next passes of some jobs, in any order; the images of a job share a bucket."""
    jobs = draw(st.lists(st.tuples(st.sampled_from(BUCKETS), st.integers(1, 4)), max_size=10))
    wanted = [
        Candidate(job, picture, bucket, draw(st.integers(1, 2)), fresh=draw(st.booleans()))
        for job, (bucket, pictures) in enumerate(jobs)
        for picture in range(pictures)
    ]
    return draw(st.permutations(wanted))


def age(candidate: Candidate) -> tuple[int, int]:
    return candidate.job, candidate.image


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


@dataclass
class Simulated:
    """An image of a simulated job: so many evaluations, each of one call or of two."""

    job: int
    evaluations: int
    #: Rows of the calls of one evaluation.
    phases: tuple[int, ...]
    arrives: int
    priority: int = 5
    calls: int = 0
    bound: int | None = None

    @property
    def left(self) -> int:
        """Calls that are left."""
        return self.evaluations * len(self.phases) - self.calls

    @property
    def wants(self) -> Candidate:
        """The next call."""
        rows = self.phases[self.calls % len(self.phases)]
        is_fresh = self.calls < len(self.phases)
        return Candidate(self.job, 0, BUCKETS[0], rows, is_fresh, self.priority)


@dataclass
class Crowd:
    """A device at which jobs arrive; each round makes one call."""

    pictures: list[Simulated]
    limit_rows: int
    #: The oldest is in one of so many calls.
    calls_per_turn: int = 1
    scheduler: Scheduler = field(default_factory=Scheduler)

    def make_round(self, now: int) -> None:
        """Set the bound of each new arrival, then make one call."""
        here = [each for each in self.pictures if each.arrives <= now and each.left]
        for each in here:
            if each.bound is None:
                calls = sum(other.left for other in here if other.job <= each.job)
                each.bound = now + self.calls_per_turn * calls
            assert now < each.bound
        by_job = {each.job: each for each in here}
        wanted = [each.wants for each in here]
        for chosen in self.scheduler.plan(wanted, lambda _: self.limit_rows):
            by_job[chosen.job].calls += 1


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


@PURE
@given(
    waiting=st.lists(st.sampled_from("abcd"), max_size=12),
    busy=st.sets(st.sampled_from("abcd"), max_size=3),
    capacity=st.integers(1, 4),
)
def test_as_many_jobs_start_as_models_fit(
    waiting: list[str], busy: set[str], capacity: int
) -> None:
    """The first waiting jobs start: all, or as many as their models fit."""
    number = admit(waiting, busy, capacity)
    assert 0 <= number <= len(waiting)
    at_work = busy | set(waiting[:number])
    assert len(at_work) <= max(capacity, len(busy))
    if number < len(waiting):
        assert len(at_work | {waiting[number]}) > capacity
        assert waiting[number] not in at_work


@PURE
@given(
    arrivals=st.lists(st.lists(st.sampled_from("abc"), max_size=3), min_size=5, max_size=25),
    capacity=st.integers(1, 2),
    rounds=st.integers(1, 4),
)
def test_no_model_is_overtaken_for_ever(
    arrivals: list[list[str]], capacity: int, rounds: int
) -> None:
    """Jobs start in order of arrival, each within the time of one job for each before it."""
    waiting: list[tuple[int, str]] = []
    running: dict[int, tuple[str, int]] = {}
    came: dict[int, int] = {}
    started: list[int] = []
    for now in range(len(arrivals) + rounds * sum(map(len, arrivals))):
        for model in arrivals[now] if now < len(arrivals) else ():
            waiting.append((len(came), model))
            came[len(came)] = now
        running = {job: each for job, each in running.items() if each[1] > now}
        busy = {model for model, _ in running.values()}
        number = admit([model for _, model in waiting], busy, capacity)
        for job, model in waiting[:number]:
            running[job] = model, now + rounds
            assert now - came[job] <= rounds * job
            started.append(job)
        waiting = waiting[number:]
        assert len({model for model, _ in running.values()}) <= capacity
    assert started == sorted(came)


@pytest.mark.parametrize(("running", "moves"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("waited_rounds", [0, DECODE_WAIT_ROUNDS])
def test_a_decode_that_moves_nothing_is_due_at_once(
    running: bool, moves: bool, waited_rounds: int
) -> None:
    """One image is decoded at once where no job runs, or where the UNet stays on the device."""
    for pictures in range(DECODE_BATCH + 2):
        due = decode_due(pictures, waited_rounds, running=running, moves_unet=moves)
        assert due == (pictures > 0)


@PURE
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_a_decode_that_moves_the_unet_waits(done: list[int]) -> None:
    """A decode that moves the UNet waits for a full batch, but at most the allowed rounds.

    `done` is how many images each round adds.
    """
    since: list[int] = []
    waited = 0
    for now, pictures in enumerate(done):
        since += [now] * pictures
        waited = waited + 1 if since else 0
        if decode_due(len(since), waited, running=True, moves_unet=True):
            assert len(since) >= DECODE_BATCH or now - since[0] == DECODE_WAIT_ROUNDS - 1
            since, waited = [], 0
        else:
            assert len(since) < DECODE_BATCH
            assert all(now - each < DECODE_WAIT_ROUNDS - 1 for each in since)
    assert not decode_due(0, 100, running=True, moves_unet=True)


@pytest.mark.parametrize("module", ["batch_scheduler", "job", "engine", "pipeline"])
def test_no_torch_to_plan(module: str) -> None:
    """Scheduler, jobs and engine are imported without torch and other large packages."""
    _, names = imported(f"worker.engine.{module}")
    assert "worker" in names
    assert not names & HEAVY
