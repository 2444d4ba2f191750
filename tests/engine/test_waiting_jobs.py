"""Which of the waiting jobs start in a round."""

from __future__ import annotations

from concurrent.futures import Future

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.test_batch_scheduler import PURE
from worker.engine import batch_scheduler
from worker.engine.job import Job
from worker.engine.running_job import RunningJob
from worker.engine.waiting_jobs import MAX_OVERTAKEN_ROUNDS, WaitingJobs
from worker.job_control import Control

MODEL, PRIORITY = st.sampled_from("abc"), st.integers(0, 9)


def waiting(number: int, model: str = "a", priority: int = 5) -> RunningJob:
    """A submitted job; what the engine makes of it does not matter here."""
    job = Job(
        id=str(number), model=model, prompts=("x",), negative_prompts=(), height=None, width=None,
        num_inference_steps=1, guidance_scale=1.0, sag_scale=0.0, num_images_per_prompt=1, eta=0.0,
        seeds=(1,), max_images=1, max_side_px=64, scheduler=None, output_type="png",
        priority=priority,
    )  # fmt: skip
    return RunningJob(number, job, Control(), Future())


def numbers(jobs: list[RunningJob]) -> list[int]:
    return [each.number for each in jobs]


@PURE
@given(priorities=st.lists(PRIORITY, max_size=12))
def test_the_most_urgent_start_first(priorities: list[int]) -> None:
    """Of waiting jobs the most urgent start first, and of equally urgent ones the oldest."""
    jobs = WaitingJobs()
    for number, priority in enumerate(priorities):
        jobs.add(waiting(number, priority=priority))
    taken = jobs.take((), 1, lambda _: True)
    assert numbers(taken) == sorted(range(len(priorities)), key=lambda n: (priorities[n], n))
    assert jobs.jobs == []


@PURE
@given(models=st.lists(MODEL, max_size=12), busy=st.sets(MODEL), capacity=st.integers(1, 3))
def test_equal_priorities_start_as_before(models: list[str], busy: set[str], capacity: int) -> None:
    """Jobs of equal priority start in order of submission, as many as `admit` says."""
    jobs = WaitingJobs()
    for number, model in enumerate(models):
        jobs.add(waiting(number, model))
    taken = jobs.take(busy, capacity, lambda _: False)
    count = batch_scheduler.admit(models, busy, capacity)
    assert numbers(taken) == list(range(count))
    assert numbers(jobs.jobs) == list(range(count, len(models)))


def test_a_model_is_not_loaded_before_the_call_of_a_more_urgent_job() -> None:
    """A model that must be loaded waits for the call of a more urgent job whose model is there."""
    jobs = WaitingJobs()
    for number, (model, priority) in enumerate([("a", 5), ("b", 6), ("a", 0), ("a", 7)]):
        jobs.add(waiting(number, model, priority))
    assert numbers(jobs.take((), 2, {"a"}.__contains__)) == [2, 0]
    assert numbers(jobs.take({"a"}, 2, {"a"}.__contains__)) == [1, 3]


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
        taken = jobs.take(busy, capacity, busy.__contains__)
        running |= {each.number: (each.job.model, now + rounds) for each in taken}
        for each in jobs.jobs:
            overtaken[each.number] += any(other.number > each.number for other in taken)
            assert overtaken[each.number] <= MAX_OVERTAKEN_ROUNDS
        assert len({model for model, _ in running.values()}) <= capacity
    assert jobs.jobs == []
