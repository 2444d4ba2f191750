"""Which of the waiting jobs start in a round."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.simulated_calls import PURE
from tests.engine.simulated_queue import MODEL, NO_ADAPTERS, PRIORITY, loaded, numbers, waiting
from worker.engine import batch_scheduler
from worker.engine.batch_scheduler import admit
from worker.engine.waiting_jobs import MAX_OVERTAKEN_ROUNDS, WaitingJobs


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


@PURE
@given(priorities=st.lists(PRIORITY, max_size=12))
def test_the_most_urgent_start_first(priorities: list[int]) -> None:
    """Of waiting jobs the most urgent start first, and of equally urgent ones the oldest."""
    jobs = WaitingJobs()
    for number, priority in enumerate(priorities):
        jobs.add(waiting(number, priority=priority))
    taken = jobs.take((), 1, loaded("abc"), NO_ADAPTERS)
    assert numbers(taken) == sorted(range(len(priorities)), key=lambda n: (priorities[n], n))
    assert jobs.jobs == []


@PURE
@given(models=st.lists(MODEL, max_size=12), busy=st.sets(MODEL), capacity=st.integers(1, 3))
def test_equal_priorities_start_as_before(models: list[str], busy: set[str], capacity: int) -> None:
    """Jobs of equal priority start in order of submission, as many as `admit` says."""
    jobs = WaitingJobs()
    for number, model in enumerate(models):
        jobs.add(waiting(number, model))
    taken = jobs.take(busy, capacity, loaded(""), NO_ADAPTERS)
    count = batch_scheduler.admit(models, busy, capacity)
    assert numbers(taken) == list(range(count))
    assert numbers(jobs.jobs) == list(range(count, len(models)))


def test_a_model_is_not_loaded_before_the_call_of_a_more_urgent_job() -> None:
    """A model that must be loaded waits for the call of a more urgent job whose model is there."""
    jobs = WaitingJobs()
    for number, (model, priority) in enumerate([("a", 5), ("b", 6), ("a", 0), ("a", 7)]):
        jobs.add(waiting(number, model, priority))
    assert numbers(jobs.take((), 2, loaded("a"), NO_ADAPTERS)) == [2, 0]
    assert numbers(jobs.take({"a"}, 2, loaded("a"), NO_ADAPTERS)) == [1, 3]


@PURE
@given(
    arrivals=st.lists(st.lists(st.tuples(MODEL, PRIORITY), max_size=3), min_size=5, max_size=40),
    capacity=st.integers(1, 2),
    rounds=st.integers(1, 4),
)
def test_no_waiting_job_starves(
    arrivals: list[list[tuple[str, int]]], capacity: int, rounds: int
) -> None:
    """Younger jobs start before a waiting one in at most `MAX_OVERTAKEN_ROUNDS` rounds.

    All start within the time of one job for each that is there.
    """
    jobs, running = WaitingJobs(), dict[int, tuple[str, int]]()
    came = 0
    overtaken: dict[int, int] = {}
    for now in range(len(arrivals) + (rounds + 1) * sum(map(len, arrivals))):
        for model, priority in arrivals[now] if now < len(arrivals) else ():
            jobs.add(waiting(came, model, priority))
            overtaken[came] = 0
            came += 1
        running = {number: each for number, each in running.items() if each[1] > now}
        busy = {model for model, _ in running.values()}
        taken = jobs.take(busy, capacity, loaded(busy), NO_ADAPTERS)
        running |= {each.number: (each.job.model, now + rounds) for each in taken}
        for each in jobs.jobs:
            overtaken[each.number] += any(other.number > each.number for other in taken)
            assert overtaken[each.number] <= MAX_OVERTAKEN_ROUNDS
        assert len({model for model, _ in running.values()}) <= capacity
    assert jobs.jobs == []
