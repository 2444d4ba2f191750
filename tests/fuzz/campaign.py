"""Many hostile entries through one process, and what they did to it."""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import stamina

from tests.fuzz import mail
from tests.fuzz.desk import Desk, can_be_answered

if TYPE_CHECKING:
    from collections.abc import Iterator

#: One in so many goes through Celery's tracer too, which takes ten times as long as all the rest.
WHOLE_EVERY = 50
#: Longest time for an entry, in seconds: so much, and so much for each of its bytes.
LIMIT_S, LIMIT_S_PER_BYTE = 0.1, 1e-6
#: Failures that are shown in full.
SHOWN = 5


@dataclass
class Tally:
    """What a campaign found."""

    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_bytes: int = 0
    #: Entries done, seconds since the start and resident memory in MiB, ten times.
    marks: list[tuple[int, float, float]] = field(default_factory=list)


def decode(seed: int, count: int, first: int = 0) -> Iterator[Tally]:
    """Take entries `first` to `first + count`; gives the tally ten times on the way."""
    logging.disable(logging.CRITICAL)
    stamina.set_active(False)  # nothing is away: no retry is wanted, and none costs time
    try:
        desk, tally, began_s = Desk(), Tally(), time.monotonic()
        for number in range(first, first + count):
            entry = mail.entry(seed, number, f"fuzz-{number}")
            try:
                _take(desk, tally, number, entry)
            except Exception:  # noqa: BLE001  # whatever it is, it is what is looked for
                shown = traceback.format_exc() if len(tally.failures) < SHOWN else ""
                tally.failures.append(f"seed {seed} number {number}: {entry[:300]!r}\n{shown}")
            done = number - first + 1
            if done * 10 % count < 10:
                tally.marks.append((done, time.monotonic() - began_s, resident_mib()))
                yield tally
    finally:
        stamina.set_active(True)
        logging.disable(logging.NOTSET)


def _take(desk: Desk, tally: Tally, number: int, entry: bytes) -> None:
    verdict = desk.take(entry, whole=number % WHOLE_EVERY == 0)
    limit_s, took_s = LIMIT_S + LIMIT_S_PER_BYTE * len(entry), verdict.took_s
    if took_s > limit_s:  # it may be the machine that was slow
        began_s = time.thread_time()
        desk.take(entry, whole=False)
        took_s = time.thread_time() - began_s
    assert took_s <= limit_s, f"{took_s:.2f} s for {len(entry)} bytes"
    answerable = can_be_answered(entry)
    assert verdict.kind != "rejected" or not answerable, "nobody was told"
    tally.kinds[verdict.kind] += 1
    tally.slowest_s = max(tally.slowest_s, took_s)
    tally.largest_bytes = max(tally.largest_bytes, len(entry))


def resident_mib(process: int | str = "self") -> float:
    """Memory that a process has in use, in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024
