"""Which of the waiting jobs with adapters start in a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.simulated_calls import PURE
from tests.engine.simulated_queue import (
    MODEL,
    PRIORITY,
    loaded,
    numbers,
    waiting,
    without_adapters,
)
from worker.engine.batch_scheduler import AdapterBudget
from worker.engine.jobs.job import Job
from worker.engine.jobs.waiting_jobs import MAX_OVERTAKEN_ROUNDS, WaitingJobs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


def test_adapters_wait_for_room_and_others_pass() -> None:
    """Jobs with adapters of the same model wait behind one that has no room; all others start."""
    jobs, budget = WaitingJobs(), AdapterBudget(2)
    budget.use("a", "xy")
    for number, (model, adapters) in enumerate(
        [("a", "z"), ("a", "x"), ("a", ""), ("b", "zw"), ("a", "y")]
    ):
        jobs.add(waiting(number, model, adapters=adapters))
    assert numbers(jobs.take("a", 2, loaded("abc"), budget)) == [2, 3]
    assert numbers(jobs.jobs) == [0, 1, 4]
    budget = AdapterBudget(2)
    budget.use("a", "x")
    assert numbers(jobs.take("a", 2, loaded("abc"), budget)) == [0, 1]
    assert budget.used("a") == {"x", "z"}


def test_a_job_that_waits_for_room_is_overtaken_by_its_model_alone() -> None:
    """Jobs with adapters of another model, which take none of its room, do not count."""
    jobs = WaitingJobs()
    jobs.add(waiting(0, "a", adapters="z"))
    for number, model in enumerate("bab", start=1):
        budget = AdapterBudget(2)
        budget.use("a", "xy")
        jobs.add(waiting(number, model, priority=0, adapters="x"))
        jobs.take("a", 2, loaded("ab"), budget)
    assert [(each.number, each.overtaken_rounds) for each in jobs.jobs] == [(0, 1)]


def test_an_adapter_is_not_loaded_before_the_call_of_a_more_urgent_job() -> None:
    """It waits for that call, unless a job that starts or runs has it."""
    jobs, budget = WaitingJobs(), AdapterBudget(4)
    budget.use("a", "x")
    jobs.add(waiting(0, priority=0))
    jobs.add(waiting(1, priority=1, adapters="x"))
    jobs.add(waiting(2, priority=2, adapters="xy"))
    assert numbers(jobs.take("a", 1, without_adapters, budget)) == [0, 1]
    assert numbers(jobs.take("a", 1, without_adapters, budget)) == [2]


def test_jobs_behind_an_adapter_that_must_be_loaded_start() -> None:
    """Only more urgent jobs delay it; after so many rounds it starts before them."""
    jobs, taken = WaitingJobs(), []
    jobs.add(waiting(0, adapters="x"))
    jobs.add(waiting(1))
    for number in range(2, MAX_OVERTAKEN_ROUNDS + 3):
        jobs.add(waiting(number, priority=0))
        taken.append(numbers(jobs.take("a", 1, without_adapters, AdapterBudget(4))))
    urgent = [[number] for number in range(3, MAX_OVERTAKEN_ROUNDS + 2)]
    assert taken == [[2, 1], *urgent, [0, MAX_OVERTAKEN_ROUNDS + 2]]


def test_behind_a_model_that_must_be_loaded_all_wait() -> None:
    """Its adapters do not matter."""
    jobs = WaitingJobs()
    for number, (model, priority) in enumerate([("a", 0), ("b", 5), ("a", 6)]):
        jobs.add(waiting(number, model, priority, adapters="x" if model == "b" else ""))
    assert numbers(jobs.take("a", 2, loaded("a"), AdapterBudget(4))) == [0]
    assert numbers(jobs.take("a", 2, loaded("a"), AdapterBudget(4))) == [1, 2]


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
    is_loaded=st.sampled_from([loaded("abc"), without_adapters]),
)
def test_no_job_with_adapters_starves(
    arrivals: list[list[tuple[str, int, set[str]]]],
    room: int,
    rounds: int,
    is_loaded: Callable[[str, Collection[str]], bool],
) -> None:
    """The adapters of a model's running jobs never exceed the budget, and all jobs start.

    Younger jobs with adapters of its model start before one in at most `MAX_OVERTAKEN_ROUNDS`
    rounds, and so do all younger jobs while its adapters would have to be loaded. Jobs without
    adapters do not wait.
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
        taken = jobs.take({each.model for each, _ in running.values()}, 3, is_loaded, budget)
        running |= {each.number: (each.job, now + rounds) for each in taken}
        for model in "abc":
            there = [each for each, _ in running.values() if each.model == model]
            assert len({name for each in there for name in each.adapter_names}) <= room
        full = {
            each.job.model
            for each in jobs.jobs
            if not budget.has_room(each.job.model, each.job.adapter_names)
        }
        for left in jobs.jobs:
            assert left.job.loras
            overtaken[left.number] += any(
                each.number > left.number
                and (
                    left.job.model not in full
                    or (each.job.model == left.job.model and bool(each.job.loras))
                )
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
        started = jobs.take("a", 1, loaded("abc"), budget)
        running = "".join(name for each in started for name in each.job.adapter_names)
        taken += numbers(started)
    assert taken == [*range(1, MAX_OVERTAKEN_ROUNDS + 1), 0]
