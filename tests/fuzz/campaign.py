"""Runs many hostile entries through the worker's code in one process."""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import stamina

from tests.fuzz import hostile_messages
from tests.fuzz.pipeline import Pipeline, can_be_answered

if TYPE_CHECKING:
    from collections.abc import Iterator

#: One entry in so many also goes through the tracer of Celery, which takes ten times as long.
WHOLE_EVERY = 50
#: Longest time for an entry, in seconds, and for each of its bytes.
LIMIT_S, LIMIT_S_PER_BYTE = 0.1, 1e-6
#: Failures that are shown with a traceback.
SHOWN = 5


@dataclass
class Tally:
    """The results of a campaign."""

    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_bytes: int = 0
    #: Ten times during the campaign: entries done, seconds since the start, resident memory in MiB.
    marks: list[tuple[int, float, float]] = field(default_factory=list)


def run_in_process(seed: int, count: int, first: int = 0) -> Iterator[Tally]:
    """Process entries `first` to `first + count`; gives the tally ten times."""
    logging.disable(logging.CRITICAL)
    stamina.set_active(False)  # no server is used, so that a retry can't help
    try:
        pipeline, tally, began_s = Pipeline(), Tally(), time.monotonic()
        for number in range(first, first + count):
            entry = hostile_messages.entry(seed, number, f"fuzz-{number}")
            try:
                _take(pipeline, tally, number, entry)
            except Exception:  # noqa: BLE001  # every error is a finding
                shown = traceback.format_exc() if len(tally.failures) < SHOWN else ""
                tally.failures.append(f"seed {seed} number {number}: {entry[:300]!r}\n{shown}")
            done = number - first + 1
            if done * 10 % count < 10:
                tally.marks.append((done, time.monotonic() - began_s, resident_mib()))
                yield tally
    finally:
        stamina.set_active(True)
        logging.disable(logging.NOTSET)


def _take(pipeline: Pipeline, tally: Tally, number: int, entry: bytes) -> None:
    verdict = pipeline.take(entry, whole=number % WHOLE_EVERY == 0)
    limit_s, took_s = LIMIT_S + LIMIT_S_PER_BYTE * len(entry), verdict.took_s
    if took_s > limit_s:  # the machine may have been slow
        began_s = time.thread_time()
        pipeline.take(entry, whole=False)
        took_s = time.thread_time() - began_s
    assert took_s <= limit_s, f"{took_s:.2f} s for {len(entry)} bytes"
    answerable = can_be_answered(entry)
    assert verdict.kind != "rejected" or not answerable, "not answered"
    tally.kinds[verdict.kind] += 1
    tally.slowest_s = max(tally.slowest_s, took_s)
    tally.largest_bytes = max(tally.largest_bytes, len(entry))


def resident_mib(process: int | str = "self") -> float:
    """Resident memory of a process, in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024
