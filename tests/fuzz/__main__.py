"""`python -m tests.fuzz`: millions of hostile messages, each made from a seed and its number.

With `--service` they are sent to a real worker process through a real Redis.
"""

from __future__ import annotations

import argparse
import logging
import sys

from tests.fuzz.campaign import Tally, run_in_process
from tests.fuzz.daemon import daemon, send_messages


def main() -> int:
    """Status 0 when no failure was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first message")
    parser.add_argument("--service", action="store_true", help="through a worker process")
    options = parser.parse_args()
    if options.service:
        return _through_a_worker(options.seed, options.messages)
    return _in_process(options.seed, options.messages, options.first)


def _in_process(seed: int, count: int, first: int) -> int:
    tally = Tally()
    for tally in run_in_process(seed, count, first):
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
        for report in send_messages(started, seed, count):
            done, seconds, mib = report.marks[-1]
            line = f"{done:>10} messages {seconds:8.1f} s {mib:8.1f} MiB in the worker,"
            print(line, f"{report.rejected} rejected {report.ended or ''}", flush=True)
    print("the same picture before and after, no message left, no unknown key")
    return 0


if __name__ == "__main__":
    sys.exit(main())
