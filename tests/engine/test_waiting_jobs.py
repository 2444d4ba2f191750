"""Which of the waiting jobs start in a round."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.test_batch_scheduler import PURE
from worker.engine import batch_scheduler
from worker.engine.batch_scheduler import AdapterBudget
from worker.engine.job import Job
from worker.engine.running_job import RunningJob
from worker.engine.waiting_jobs import MAX_OVERTAKEN_ROUNDS, WaitingJobs
from worker.job_control import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

MODEL, PRIORITY = st.sampled_from("abc"), st.integers(0, 9)


#: Of jobs without adapters, for which there is always room.
NO_ADAPTERS = AdapterBudget(1)


def loaded(models: Collection[str]) -> Callable[[Job], bool]:
    """Whether a job's model is one of these."""
    return lambda each: each.model in models


def waiting(
    number: int,
    model: str = "a",
    priority: int = 5,
    image: bytes | None = None,
    adapters: str = "",
) -> RunningJob:
    """A submitted job; what the engine makes of it does not matter here."""
    job = Job(
        id=str(number), model=model, prompts=("x",), negative_prompts=(), height=None, width=None,
        num_inference_steps=1, guidance_scale=1.0, sag_scale=0.0, num_images_per_prompt=1, eta=0.0,
        seeds=(1,), max_images=1, max_side_px=64, scheduler=None, output_type="png",
        priority=priority, image=image, loras=tuple((name, 1.0) for name in adapters),
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
    taken = jobs.take((), 1, lambda _: True, NO_ADAPTERS)
    assert numbers(taken) == sorted(range(len(priorities)), key=lambda n: (priorities[n], n))
    assert jobs.jobs == []


@PURE
@given(models=st.lists(MODEL, max_size=12), busy=st.sets(MODEL), capacity=st.integers(1, 3))
def test_equal_priorities_start_as_before(models: list[str], busy: set[str], capacity: int) -> None:
    """Jobs of equal priority start in order of submission, as many as `admit` says."""
    jobs = WaitingJobs()
    for number, model in enumerate(models):
        jobs.add(waiting(number, model))
    taken = jobs.take(busy, capacity, lambda _: False, NO_ADAPTERS)
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


def test_one_picture_starts_in_a_round() -> None:
    """The most urgent one, of equally urgent ones the oldest; jobs without a picture all start."""
    jobs = WaitingJobs()
    for number, image in enumerate([None, b"", None, b"", b"", None]):
        jobs.add(waiting(number, priority=0 if number == 4 else 5, image=image))
    assert numbers(jobs.take((), 1, lambda _: True, NO_ADAPTERS)) == [4, 0, 2, 5]
    jobs.add(waiting(6))
    assert numbers(jobs.take("a", 1, lambda _: True, NO_ADAPTERS)) == [1, 6]
    assert numbers(jobs.take("a", 1, lambda _: True, NO_ADAPTERS)) == [3]


def test_urgent_pictures_overtake_one_so_many_rounds() -> None:
    """Then it goes before them."""
    jobs = WaitingJobs()
    jobs.add(waiting(0, priority=9, image=b""))
    taken = []
    for number in range(1, MAX_OVERTAKEN_ROUNDS + 2):
        jobs.add(waiting(number, priority=0, image=b""))
        taken += numbers(jobs.take("a", 1, lambda _: True, NO_ADAPTERS))
    assert taken == [*range(1, MAX_OVERTAKEN_ROUNDS + 1), 0]


def test_jobs_without_a_picture_do_not_overtake_one() -> None:
    """They do not delay it, so an urgent picture still goes before pictures that wait long."""
    jobs = WaitingJobs()
    for number in range(2 * MAX_OVERTAKEN_ROUNDS):
        jobs.add(waiting(number, image=b""))
    for number in range(MAX_OVERTAKEN_ROUNDS + 1):
        jobs.add(waiting(100 + number))
        assert numbers(jobs.take("a", 1, lambda _: True, NO_ADAPTERS)) == [number, 100 + number]
    jobs.add(waiting(200, priority=0, image=b""))
    assert numbers(jobs.take("a", 1, lambda _: True, NO_ADAPTERS)) == [200]


@PURE
@given(
    arrivals=st.lists(
        st.lists(st.tuples(MODEL, PRIORITY, st.booleans()), max_size=3), min_size=5, max_size=40
    ),
    capacity=st.integers(1, 2),
)
def test_no_picture_starves(arrivals: list[list[tuple[str, int, bool]]], capacity: int) -> None:
    """Younger pictures start before one in at most `MAX_OVERTAKEN_ROUNDS` rounds; all start."""
    jobs, running, came = WaitingJobs(), dict[str, int](), 0
    overtaken: dict[int, int] = {}
    for now in range(len(arrivals) + 3 * sum(map(len, arrivals))):
        for model, priority, has_picture in arrivals[now] if now < len(arrivals) else ():
            jobs.add(waiting(came, model, priority, b"" if has_picture else None))
            overtaken[came] = 0
            came += 1
        busy = {model for model, until in running.items() if until > now}
        taken = jobs.take(busy, capacity, loaded(busy), NO_ADAPTERS)
        running |= {each.job.model: now + 2 for each in taken}
        pictures = [each.number for each in taken if each.job.image is not None]
        assert len(pictures) <= 1
        for each in jobs.jobs:
            overtaken[each.number] += each.job.image is not None and pictures > [each.number]
            assert overtaken[each.number] <= MAX_OVERTAKEN_ROUNDS
    assert jobs.jobs == []


def test_adapters_wait_for_room_and_others_pass() -> None:
    """Jobs with adapters of the same model wait behind one that has no room; all others start."""
    jobs, budget = WaitingJobs(), AdapterBudget(2)
    budget.use("a", "xy")
    for number, (model, adapters) in enumerate(
        [("a", "z"), ("a", "x"), ("a", ""), ("b", "zw"), ("a", "y")]
    ):
        jobs.add(waiting(number, model, adapters=adapters))
    assert numbers(jobs.take("a", 2, lambda _: True, budget)) == [2, 3]
    assert numbers(jobs.jobs) == [0, 1, 4]
    budget = AdapterBudget(2)
    budget.use("a", "x")
    assert numbers(jobs.take("a", 2, lambda _: True, budget)) == [0, 1]
    assert budget.used("a") == {"x", "z"}


def test_an_adapter_is_not_loaded_before_the_call_of_a_more_urgent_job() -> None:
    """It waits for that call, unless a job that starts or runs has it."""
    jobs, budget = WaitingJobs(), AdapterBudget(4)
    budget.use("a", "x")
    jobs.add(waiting(0, priority=0))
    jobs.add(waiting(1, priority=1, adapters="x"))
    jobs.add(waiting(2, priority=2, adapters="xy"))
    assert numbers(jobs.take("a", 1, lambda each: not each.loras, budget)) == [0, 1]
    assert numbers(jobs.take("a", 1, lambda each: not each.loras, budget)) == [2]


@PURE
@given(
    arrivals=st.lists(
        st.lists(
            st.tuples(MODEL, PRIORITY, st.sets(st.sampled_from("uvwxyz"), max_size=3)), max_size=3
        ),
        min_size=5,
        max_size=40,
    ),
    room=st.integers(3, 4),
    rounds=st.integers(1, 4),
)
def test_no_job_with_adapters_starves(
    arrivals: list[list[tuple[str, int, set[str]]]], room: int, rounds: int
) -> None:
    """The adapters of a model's running jobs never exceed the budget, and all jobs start.

    Younger jobs with adapters of its model start before one in at most `MAX_OVERTAKEN_ROUNDS`
    rounds.
    """
    jobs, running, came = WaitingJobs(), dict[int, tuple[Job, int]](), 0
    overtaken: dict[int, int] = {}
    for now in range(len(arrivals) + (rounds + 1) * sum(map(len, arrivals))):
        for model, priority, names in arrivals[now] if now < len(arrivals) else ():
            jobs.add(waiting(came, model, priority, adapters="".join(sorted(names))))
            overtaken[came] = 0
            came += 1
        running = {number: each for number, each in running.items() if each[1] > now}
        budget = AdapterBudget(room)
        for each, _ in running.values():
            budget.use(each.model, each.adapter_names)
        taken = jobs.take({each.model for each, _ in running.values()}, 3, lambda _: True, budget)
        running |= {each.number: (each.job, now + rounds) for each in taken}
        for model in "abc":
            there = [each for each, _ in running.values() if each.model == model]
            assert len({name for each in there for name in each.adapter_names}) <= room
        for left in jobs.jobs:
            assert left.job.loras
            overtaken[left.number] += any(
                each.number > left.number and each.job.model == left.job.model and each.job.loras
                for each in taken
            )
            assert overtaken[left.number] <= MAX_OVERTAKEN_ROUNDS
    assert jobs.jobs == []


def test_urgent_adapters_overtake_a_job_so_many_rounds() -> None:
    """Then it goes before them, and they wait until there is room for its adapters."""
    jobs, running, taken = WaitingJobs(), "", []
    jobs.add(waiting(0, priority=9, adapters="xy"))
    for number in range(1, MAX_OVERTAKEN_ROUNDS + 3):
        jobs.add(waiting(number, priority=0, adapters="z"))
        budget = AdapterBudget(2)
        budget.use("a", running)
        started = jobs.take("a", 1, lambda _: True, budget)
        running = "".join(name for each in started for name in each.job.adapter_names)
        taken += numbers(started)
    assert taken == [*range(1, MAX_OVERTAKEN_ROUNDS + 1), 0]
