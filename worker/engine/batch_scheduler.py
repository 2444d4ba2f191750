"""Chooses the rows of the next UNet call. Pure: no torch, no clock, deterministic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from api_contracts.names import DEFAULT_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from collections.abc import Set as AbstractSet

#: Images in one call of the decoder.
DECODE_BATCH = 8
#: Rounds that an image waits for a full decoder batch where decoding offloads the UNet.
DECODE_WAIT_ROUNDS = 8
#: Of so many consecutive calls at least one includes the image that would be the first choice
#: without priorities.
CALLS_PER_TURN = 8


@dataclass(frozen=True)
class Bucket:
    """What all rows of one UNet call must share."""

    model: str
    #: Of the latents.
    height: int
    width: int
    #: Length of the text embeddings.
    tokens: int
    #: Factor on the LoRA weights, which one call applies to all of its rows.
    lora_scale: float | None


@dataclass(frozen=True)
class Candidate:
    """The next pass of one image: a main pass of one or two rows, or a degraded pass of one."""

    #: Number of its job; older jobs have smaller ones.
    job: int
    #: Index of the image in its job.
    image: int
    bucket: Bucket
    rows: int
    #: Whether it has completed no step yet.
    fresh: bool = False
    #: 0 goes first.
    priority: int = DEFAULT_PRIORITY


class _RoundRobin:
    """The order of buckets: least recently served first."""

    def __init__(self) -> None:
        self._times = 0
        #: Which time each bucket that has candidates was last served.
        self._served: dict[Bucket, int] = {}

    def order(self, present: AbstractSet[Bucket]) -> dict[Bucket, tuple[int, bool]]:
        """Sort keys of the buckets that have candidates now; others are forgotten."""
        # A new bucket goes after those that have waited longer and before the last one served.
        new = present - self._served.keys()
        self._served = {each: self._served.get(each, self._times) for each in present}
        return {each: (served, each not in new) for each, served in self._served.items()}

    def serve(self, bucket: Bucket) -> None:
        """Move a bucket to the end."""
        self._times += 1
        self._served[bucket] = self._times


class Scheduler:
    """Serves the most urgent images first, and of equally urgent buckets the least recently served.

    Of images of equal priority in a bucket the oldest goes first; then those without a step, so
    that a new task's first step is in the next call; then the others by age. Priorities only decide
    which images a call leaves out: a call that can take all is the same whatever they are.
    """

    def __init__(self) -> None:
        self._calls = _RoundRobin()
        #: Counts a bucket as served only when its oldest image was.
        self._turns = _RoundRobin()
        #: Calls since the last one with the image whose turn it was.
        self._left_out = 0

    def plan(
        self, candidates: Sequence[Candidate], limit: Callable[[Bucket], int]
    ) -> list[Candidate]:
        """The candidates of the next call: all of one bucket, at most `limit(bucket)` rows.

        The first choice is always taken, even when it alone exceeds the limit. Others that do not
        fit are skipped; later ones that fit are taken. Empty without candidates. For a candidate
        alone the limit, which may have to be measured, is not asked.

        The first choice is the most urgent one. In one of `CALLS_PER_TURN` calls it is the oldest
        of the bucket whose turn it is, so that none starves. That is one call earlier than it must
        be, so that a new image of priority 0 can go before it once.
        """
        if not candidates:
            return []
        by_age = sorted(candidates, key=lambda each: (each.job, each.image))
        present = {each.bucket for each in by_age}
        calls, turns = self._calls.order(present), self._turns.order(present)
        by_turn = min(by_age, key=lambda each: turns[each.bucket])
        most_urgent = min(by_age, key=lambda each: (each.priority, calls[each.bucket]))
        goes_before = most_urgent.fresh and most_urgent.priority == 0
        patience = CALLS_PER_TURN - 1 if goes_before else CALLS_PER_TURN - 2
        first = most_urgent if self._left_out < patience else by_turn
        own = [each for each in by_age if each.bucket == first.bucket]
        chosen = own if len(own) == 1 else _fill(own, first, limit(first.bucket))
        self._calls.serve(first.bucket)
        if own[0] in chosen:
            self._turns.serve(first.bucket)
        self._left_out = 0 if by_turn in chosen else self._left_out + 1
        return chosen


def _fill(by_age: Sequence[Candidate], first: Candidate, limit_rows: int) -> list[Candidate]:
    """Choose `first`, then by priority; the result's order does not depend on priorities."""
    oldest: dict[int, Candidate] = {}
    for each in by_age:
        oldest.setdefault(each.priority, each)
    chosen, left_rows = {first}, limit_rows - first.rows
    for each in sorted(
        by_age, key=lambda each: (each.priority, each is not oldest[each.priority], not each.fresh)
    ):
        if each is not first and each.rows <= left_rows:
            chosen.add(each)
            left_rows -= each.rows
    in_order = sorted(by_age, key=lambda each: (each is not by_age[0], not each.fresh))
    return [each for each in in_order if each in chosen]


def admit(waiting: Sequence[str], busy: Collection[str], capacity: int) -> int:
    """How many of the waiting jobs may start, in order; `waiting` holds the model of each.

    At most `capacity` models run at once. A job that must wait for another model's jobs to end
    holds back all jobs behind it; otherwise those could keep the other model busy forever.
    """
    models = set(busy)
    for number, model in enumerate(waiting):
        if model not in models:
            if len(models) >= capacity:
                return number
            models.add(model)
    return len(waiting)


class AdapterBudget:
    """The adapters of running jobs, by model, of which one model has at most `capacity` at once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used: dict[str, set[str]] = {}

    def used(self, model: str) -> set[str]:
        """Those that running jobs of a model use."""
        return self._used.setdefault(model, set())

    def has_room(self, model: str, names: Collection[str]) -> bool:
        """Whether a job with these adapters may start."""
        return not names or len(self.used(model) | {*names}) <= self._capacity

    def use(self, model: str, names: Collection[str]) -> None:
        """A job with these adapters runs."""
        self.used(model).update(names)


def decode_due(
    images: int, waited_rounds: int, *, running: bool, moves_unet: bool, urgent: bool = False
) -> bool:
    """Whether to decode the denoised images now.

    `moves_unet`: decoding moves the UNet off the device. Then, while other jobs are `running`,
    decoding waits for a full batch or `DECODE_WAIT_ROUNDS`, unless a job is `urgent`.
    """
    if not moves_unet or not running or urgent:
        return images > 0
    return images >= DECODE_BATCH or (images > 0 and waited_rounds >= DECODE_WAIT_ROUNDS)
