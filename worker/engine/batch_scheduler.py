"""Which rows go into the next UNet call. Pure: no torch, no clock; the same in, the same out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

#: Pictures that are decoded together where a decode throws the UNet off the device.
DECODE_TOGETHER = 8
#: Ticks that a picture waits for others to be decoded with.
DECODE_TICKS = 8


@dataclass(frozen=True)
class Bucket:
    """What the rows of one call have in common."""

    model: str
    #: Of the latents.
    height: int
    width: int
    #: Length of the text embeddings.
    tokens: int
    #: Of the LoRA weights, which one call applies to all of its rows.
    lora_scale: float | None


@dataclass(frozen=True)
class Candidate:
    """What one picture needs next: one row for a degraded pass, one or two for a main pass."""

    #: Number of its job; older jobs have smaller ones.
    job: int
    #: Number of the picture in its job.
    picture: int
    bucket: Bucket
    rows: int
    #: Whether it has not made its first step yet.
    fresh: bool = False


class Scheduler:
    """Buckets in turn, the one that waits longest first.

    Within a bucket the oldest job goes first, then those that have not begun, so that a new task's
    first step is in the next call whatever is under way, then the others by age.
    """

    def __init__(self) -> None:
        self._ticks = 0
        self._served: dict[Bucket, int] = {}

    def plan(
        self, candidates: Sequence[Candidate], limit: Callable[[Bucket], int]
    ) -> list[Candidate]:
        """The candidates of the next call, all of one bucket, within `limit` rows of it.

        The oldest of the bucket always goes, even when it alone is over the limit. Where the next
        does not fit, a younger and smaller one may. No candidates, no call.
        """
        if not candidates:
            return []
        waiting = sorted(candidates, key=lambda each: (each.job, each.picture))
        present = {each.bucket for each in waiting}
        # One that is new comes after all that wait longer, and before what was served last.
        new = present - self._served.keys()
        self._served = {each: self._served.get(each, self._ticks) for each in present}
        bucket = min(
            (each.bucket for each in waiting),
            key=lambda each: (self._served[each], each not in new),
        )
        self._ticks += 1
        self._served[bucket] = self._ticks
        return _fill([each for each in waiting if each.bucket == bucket], limit(bucket))


def _fill(waiting: Sequence[Candidate], limit_rows: int) -> list[Candidate]:
    chosen, left_rows = [waiting[0]], limit_rows - waiting[0].rows
    for each in sorted(waiting[1:], key=lambda each: not each.fresh):
        if each.rows <= left_rows:
            chosen.append(each)
            left_rows -= each.rows
    return chosen


def admit(waiting: Sequence[str], busy: Collection[str], capacity: int) -> int:
    """How many of the jobs that wait may start, in order, by the models that they want.

    At most `capacity` models are at work at once. A job whose model must wait for another to be
    done holds back all behind it, or those would keep the other at work for ever.
    """
    held = set(busy)
    for number, model in enumerate(waiting):
        if model not in held:
            if len(held) >= capacity:
                return number
            held.add(model)
    return len(waiting)


def decode_due(pictures: int, waited_ticks: int, *, running: bool, moves: bool) -> bool:
    """Whether to decode now what is denoised.

    `moves`: decoding throws the UNet off the device. Then it waits for company while others run.
    """
    if not moves or not running:
        return pictures > 0
    return pictures >= DECODE_TOGETHER or (pictures > 0 and waited_ticks >= DECODE_TICKS)
