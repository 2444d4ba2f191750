"""`python -m tests.chaos`: a schedule of faults, drawn from a seed, over the real service.

Starts a Redis, an S3 server and several machines' worth of workers on free ports of 127.0.0.1, and
ends them. Exit status 0 when every law held, 1 when one was broken, 2 when the run proves nothing.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from api_contracts import GenerationError
from tests.chaos import report
from tests.chaos.fault_schedule import FaultKind
from tests.chaos.plan import Plan
from tests.chaos.run import run_plan
from tests.chaos.site.patches import SWITCHES
from worker.process_guard import guard_children

if TYPE_CHECKING:
    from types import FrameType


def main() -> int:
    """Run, report, and give the exit status."""
    console = Console(stderr=True)
    options = _options()
    for number in (signal.SIGINT, signal.SIGTERM):  # in a background job SIGINT may be ignored
        signal.signal(number, _interrupt)
    guard_children()
    folder = Path(tempfile.mkdtemp(prefix="sag-chaos-"))

    def say(line: str) -> None:
        if not options.quiet:
            console.print(line, markup=False, highlight=False)

    try:
        findings = run_plan(_plan(options), folder / "run", say)
    except KeyboardInterrupt:
        console.print(f"interrupted; everything is stopped, the logs are in {folder}")
        return 130
    except (GenerationError, RuntimeError, TimeoutError) as error:
        console.print(f"could not start: {error!r}; the logs are in {folder}", markup=False)
        return 2
    report.show(findings, Console(width=140))
    if options.out:
        report.save(findings, options.out)
    if not findings.switched:
        console.print(f"{options.off} was not turned off in any process: the run proves nothing")
        return 2
    if report.is_green(findings):
        shutil.rmtree(folder)
        return 0
    console.print(f"logs, Redis's and S3's files are in {folder}")
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, plan = parser.add_argument, Plan()
    add("--seed", type=int, default=plan.seed, help="submissions and faults are drawn from it")
    add("--tasks", type=int, help="how many; 200 unless --seconds is given")
    add("--seconds", type=float, help="time to submit in, evenly when --tasks is given, too")
    add("--every", type=float, default=plan.every_s, help="mean seconds between two faults")
    add("--workers", type=int, default=plan.machines, help="machines with one worker each")
    add(
        "--faults", type=_kinds, default="all", help=f"all, none, or some of {', '.join(FaultKind)}"
    )
    add("--off", choices=sorted(SWITCHES), help="turn this off: then the run must turn red")
    add("--backlog", type=int, default=plan.backlog, help="tasks that may be open at once")
    add("--requests", type=int, default=plan.requests, help="distinct requests")
    add("--poison", type=int, default=plan.poison_in, help="one task in so many kills workers")
    add("--clock", type=float, default=plan.clock_off_s, help="seconds, of the last machine")
    add("--patience", type=float, default=plan.patience_s, help="silent seconds until the end")
    add("--others", type=int, default=plan.others, help="tasks that wait below all of these")
    add(
        "--sentinel", action="store_true", help="Redis with replicas and sentinels, which fail over"
    )
    add("--setting", action="append", default=[], metavar="NAME=VALUE", help="of the workers")
    add("--out", type=Path, help="folder for chaos.json and chaos.md")
    add("--quiet", action="store_true", help="print the tables alone")
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> Plan:
    tasks = options.tasks
    if tasks is None and options.seconds is None:
        tasks = Plan().tasks
    return Plan(
        seed=options.seed,
        tasks=tasks,
        seconds=options.seconds,
        every_s=options.every,
        machines=options.workers,
        kinds=options.faults,
        off=options.off,
        requests=options.requests,
        backlog=options.backlog,
        poison_in=options.poison or None,
        clock_off_s=options.clock,
        patience_s=options.patience,
        others=options.others,
        sentinel=options.sentinel,
        settings=dict(each.split("=", 1) for each in options.setting),
    )


def _kinds(text: str) -> frozenset[FaultKind]:
    """The kinds of faults in a text such as `kill-child,freeze`."""
    if text in ("all", "none"):
        return frozenset(FaultKind if text == "all" else ())
    return frozenset(map(FaultKind, text.split(",")))


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # so that ending the processes is not interrupted
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
