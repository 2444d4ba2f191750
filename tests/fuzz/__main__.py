"""`python -m tests.fuzz`: hostile messages by the million, each made from a seed and its number.

With `--service` they go through a real worker process over a real Redis.
"""

from __future__ import annotations

import argparse
import logging
import sys

from tests.fuzz.campaign import Tally, decode
from tests.fuzz.daemon import bombard, daemon


def main() -> int:
    """Status 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first message")
    parser.add_argument("--service", action="store_true", help="through a worker process")
    asked = parser.parse_args()
    if asked.service:
        return _through_a_worker(asked.seed, asked.messages)
    return _in_process(asked.seed, asked.messages, asked.first)


def _in_process(seed: int, count: int, first: int) -> int:
    tally = Tally()
    for tally in decode(seed, count, first):
        done, seconds, mib = tally.marks[-1]
        print(
            f"{done:>10} messages {seconds:8.1f} s {mib:8.1f} MiB {dict(tally.kinds)}", flush=True
        )
    print(f"slowest {tally.slowest_s:.3f} s, largest {tally.largest_bytes} bytes")
    for failure in tally.failures:
        print(failure, file=sys.stderr)
    print(f"{len(tally.failures)} failures")
    return 1 if tally.failures else 0


def _through_a_worker(seed: int, count: int) -> int:
    logging.disable(logging.CRITICAL)
    with daemon() as started:
        for report in bombard(started, seed, count):
            done, seconds, mib = report.marks[-1]
            told = f"{done:>10} messages {seconds:8.1f} s {mib:8.1f} MiB in the worker,"
            print(told, f"{report.rejected} rejected {report.ended or ''}", flush=True)
    print("the same picture before and after, nothing left, no strange key")
    return 0


if __name__ == "__main__":
    sys.exit(main())
