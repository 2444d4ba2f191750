"""`python -m benchmarks.gpu_check`: all measurements that need a GPU, in minutes.

Writes `gpu-check.json` and `gpu-check.md`. The exit status is 0 when every part passed or was
skipped, 1 when one failed, was ended at its limit or was not reached, 130 after a signal. Goals
that are missed do not change it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmarks.gpu_check import page, parent, parts, setting
from benchmarks.gpu_check.outcome import Status
from benchmarks.gpu_check.parts import BY_NAME, PARTS

if TYPE_CHECKING:
    from types import FrameType

    from benchmarks.gpu_check.outcome import Outcome

#: Seconds for everything, the installation of packed wheels included.
GPU_S, REHEARSAL_S = 470.0, 300.0
ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the parts; gives the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    options = _options()
    began_s = time.monotonic() - options.spent_s
    budget_s = options.seconds or (REHEARSAL_S if options.rehearse else GPU_S)
    chosen = [
        replace(part, limit_s=part.limit_s * options.slack) for part in parts.chosen(options.only)
    ]
    date_utc, revision = datetime.now(UTC).isoformat(timespec="seconds"), _revision()
    with tempfile.TemporaryDirectory(prefix="sag-gpu-check-", ignore_cleanup_errors=True) as folder:
        made = setting.rehearsal if options.rehearse else setting.gpu
        given = made(Path(folder))

        def keep(found: list[Outcome]) -> None:
            took_s = round(time.monotonic() - began_s, 1)
            report = page.Report(
                given.device, date_utc, revision, budget_s, took_s, given.steps, found
            )
            page.save(report, options.out)

        try:
            found = parent.run(chosen, given, began_s + budget_s, keep)
        except KeyboardInterrupt:
            print(f"interrupted; what was found is in {options.out}")
            return 130
    print(f"\n{options.out / page.NAME}.md", f"{options.out / page.NAME}.json", sep="\n")
    well = all(each.status in (Status.PASSED, Status.SKIPPED) for each in found)
    return 0 if well else 1


def _options() -> argparse.Namespace:
    lines = [f"  {part.name:<12}{part.title}" for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        epilog="\n".join(["parts, in order of worth:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rehearse", action="store_true", help="a small form on the CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu-check-output"), help="for the report")
    parser.add_argument("--seconds", type=float, help=f"for everything; {GPU_S:g} on a GPU")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=BY_NAME,
        metavar="PART",
        default=[],
        help="these parts, with the environment and the weights that they need",
    )
    parser.add_argument(
        "--slack",
        type=float,
        default=1.0,
        help="factor on the limit of each part, if others use the machine",
    )
    parser.add_argument(
        "--spent-s", type=float, default=0.0, help="seconds that count as spent, for installing"
    )
    return parser.parse_args()


def _revision() -> str:
    """Of the checkout, as git tells it; empty where it does not."""
    try:
        told = subprocess.run(  # noqa: S603  # a fixed command
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],  # noqa: S607  # of the PATH
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
