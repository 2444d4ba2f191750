"""`python -m benchmarks COMMAND`: each command measures one thing and saves what it found.

A result goes to `results/<name>.json` and `results/<name>.png`; `report` prints all of them.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmarks.process import SideError

if TYPE_CHECKING:
    from types import FrameType

#: Command to its module, which has `add_options` and `run`, and one line of help. A module is
#: imported for its own command only: most bring torch along.
COMMANDS = {
    "throughput": ("benchmarks.throughput", "images per second against waiting tasks"),
    "latency": ("benchmarks.latency", "a task that arrives while others are half-way"),
    "daemon": ("benchmarks.daemon", "the whole daemon against its bare engine"),
    "baseline": ("benchmarks.baseline.compare", "the daemon against a worker written by hand"),
    "backlog": ("benchmarks.backlog", "what waiting tasks cost Redis, and others that ask it"),
    "coldstart": ("benchmarks.coldstart", "from the start of a process to its first picture"),
    "memory": ("benchmarks.memory", "peak memory against rows in one UNet call"),
    "flops": ("benchmarks.flops", "share of the device's matrix peak that the UNet reaches"),
    "guidance-rows": ("benchmarks.second_guidance.rows", "a row of PAG or SEG beside SAG's"),
    "guidance-pictures": ("benchmarks.second_guidance.pictures", "what each does to pictures"),
    "adapters": ("benchmarks.adapters", "rows of different LoRA adapters in one UNet call"),
    "monitoring": ("benchmarks.monitoring", "what the dashboard shows of a run"),
    "pool": ("benchmarks.pool.command", "how many workers one Redis serves"),
    "report": ("benchmarks.report", "all results as Markdown"),
}
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Find the command, let its module read the options, and run it."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that servers and workers are ended, too
    lines = [f"  {name:<19}{line}" for name, (_, line) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(["commands:", *lines, "", "COMMAND --help lists a command's options."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS)
    name = parser.parse_args(sys.argv[1:2]).command
    module = importlib.import_module(COMMANDS[name][0])
    options = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    module.add_options(options)
    try:
        module.run(options.parse_args(sys.argv[2:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except SideError as error:
        sys.exit(str(error))


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
