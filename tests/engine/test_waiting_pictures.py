"""Which of the waiting jobs with a picture to start from start in a round."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.simulated_calls import PURE
from tests.engine.simulated_queue import MODEL, NO_ADAPTERS, PRIORITY, loaded, numbers, waiting
from worker.engine.waiting_jobs import MAX_OVERTAKEN_ROUNDS, WaitingJobs


def test_one_picture_starts_in_a_round() -> None:
    """The most urgent one, of equally urgent ones the oldest; jobs without a picture all start."""
    jobs = WaitingJobs()
    for number, image in enumerate([None, b"", None, b"", b"", None]):
        jobs.add(waiting(number, priority=0 if number == 4 else 5, image=image))
    assert numbers(jobs.take((), 1, loaded("abc"), NO_ADAPTERS)) == [4, 0, 2, 5]
    jobs.add(waiting(6))
    assert numbers(jobs.take("a", 1, loaded("abc"), NO_ADAPTERS)) == [1, 6]
    assert numbers(jobs.take("a", 1, loaded("abc"), NO_ADAPTERS)) == [3]


def test_urgent_pictures_overtake_one_so_many_rounds() -> None:
    """Then it goes before them."""
    jobs = WaitingJobs()
    jobs.add(waiting(0, priority=9, image=b""))
    taken = []
    for number in range(1, MAX_OVERTAKEN_ROUNDS + 2):
        jobs.add(waiting(number, priority=0, image=b""))
        taken += numbers(jobs.take("a", 1, loaded("abc"), NO_ADAPTERS))
    assert taken == [*range(1, MAX_OVERTAKEN_ROUNDS + 1), 0]


def test_jobs_without_a_picture_do_not_overtake_one() -> None:
    """They do not delay it, so an urgent picture still goes before pictures that wait long."""
    jobs = WaitingJobs()
    for number in range(2 * MAX_OVERTAKEN_ROUNDS):
        jobs.add(waiting(number, image=b""))
    for number in range(MAX_OVERTAKEN_ROUNDS + 1):
        jobs.add(waiting(100 + number))
        assert numbers(jobs.take("a", 1, loaded("abc"), NO_ADAPTERS)) == [number, 100 + number]
    jobs.add(waiting(200, priority=0, image=b""))
    assert numbers(jobs.take("a", 1, loaded("abc"), NO_ADAPTERS)) == [200]


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
