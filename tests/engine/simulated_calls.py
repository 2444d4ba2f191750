"""Candidates for a UNet call, drawn at random, and jobs of which only the calls are counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st

from worker.engine.batch_scheduler import Bucket, Candidate, Scheduler

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
