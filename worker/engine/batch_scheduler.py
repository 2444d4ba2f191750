"""Chooses the rows of the next UNet call. Pure: no torch, no clock, deterministic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

#: Images in one call of the decoder.
DECODE_BATCH = 8
#: Rounds that an image waits for a full decoder batch where decoding offloads the UNet.
DECODE_WAIT_ROUNDS = 8


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


class Scheduler:
    """Serves buckets round robin, least recently served first.

    Within a bucket the oldest job goes first; then images without a step, so that a new task's
    first step is in the next call; then the others by age.
    """

    def __init__(self) -> None:
        self._calls = 0
        #: Number of the last call of each bucket that has candidates.
        self._served: dict[Bucket, int] = {}

    def plan(
        self, candidates: Sequence[Candidate], limit: Callable[[Bucket], int]
    ) -> list[Candidate]:
        """The candidates of the next call: all of one bucket, at most `limit(bucket)` rows.

        The bucket's oldest candidate is always taken, even when it alone exceeds the limit. Others
        that do not fit are skipped; later ones that fit are taken. Empty without candidates. For a
        candidate alone the limit, which may have to be measured, is not asked.
        """
        if not candidates:
            return []
        by_age = sorted(candidates, key=lambda each: (each.job, each.image))
        present = {each.bucket for each in by_age}
        # A new bucket goes after those that have waited longer and before the last one served.
        new = present - self._served.keys()
        self._served = {each: self._served.get(each, self._calls) for each in present}
        bucket = min(
            (each.bucket for each in by_age),
            key=lambda each: (self._served[each], each not in new),
        )
        self._calls += 1
        self._served[bucket] = self._calls
        own = [each for each in by_age if each.bucket == bucket]
        return own if len(own) == 1 else _fill(own, limit(bucket))


def _fill(by_age: Sequence[Candidate], limit_rows: int) -> list[Candidate]:
    chosen, left_rows = [by_age[0]], limit_rows - by_age[0].rows
    for each in sorted(by_age[1:], key=lambda each: not each.fresh):
        if each.rows <= left_rows:
            chosen.append(each)
            left_rows -= each.rows
    return chosen


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


def decode_due(images: int, waited_rounds: int, *, running: bool, moves_unet: bool) -> bool:
    """Whether to decode the denoised images now.

    `moves_unet`: decoding moves the UNet off the device. Then, while other jobs are `running`,
    decoding waits for a full batch or `DECODE_WAIT_ROUNDS`.
    """
    if not moves_unet or not running:
        return images > 0
    return images >= DECODE_BATCH or (images > 0 and waited_rounds >= DECODE_WAIT_ROUNDS)
