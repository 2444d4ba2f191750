"""Processor time of a worker process by thread, per image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks import chart
from benchmarks.sides import Spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from benchmarks.record import Cell, Result
    from benchmarks.turn import Turn

#: The folder whose `sitecustomize` names the threads of a worker.
NAMES_FOLDER = Path(__file__).resolve().parent / "thread_names"
ENGINE, MAIN, OTHER = "engine", "main loop", "other"
#: Sum of all groups but the engine's.
AROUND = "all but the engine"
#: How the names of a group's threads begin, longest first where one begins as another does.
GROUPS = {
    "engine-side": "engine-side",
    "engine": ENGINE,
    "ThreadPoolExecu": "slots",
    "publisher": "publisher",
    "celery": "Celery's states",
    "lease": "lease",
    "reconciler": "reconciler",
    "push": "pusher",
    "watchdog": "watchdog",
}
#: Every group, in the order of the table.
NAMES = (ENGINE, *(name for name in GROUPS.values() if name != ENGINE), MAIN, OTHER)


@dataclass(frozen=True)
class ThreadTimes:
    """Processor time so far, in seconds, by group of threads."""

    seconds: dict[str, float]

    @classmethod
    def of(cls, pid: int) -> ThreadTimes:
        """Of a process. `other` has the threads of no group, and those that have ended."""
        seconds = dict.fromkeys(NAMES, 0.0)
        process = psutil.Process(pid)
        total = process.cpu_times()
        for thread in process.threads():
            seconds[_group(pid, thread.id)] += thread.user_time + thread.system_time
        ended = total.user + total.system - sum(seconds.values())
        seconds[OTHER] += max(0.0, ended)
        return cls(seconds)

    def ms_an_image_since(self, earlier: ThreadTimes, images: int) -> dict[str, float]:
        """Milliseconds of each group between two moments, for each of the images made meanwhile."""
        return {
            name: 1000 * (self.seconds[name] - earlier.seconds[name]) / images for name in NAMES
        }


def worker_pid(supervisor_pid: int) -> int:
    """The process that holds the leases, under a supervisor with one worker."""
    children = psutil.Process(supervisor_pid).children(recursive=True)
    (found,) = [
        child.pid
        for child in children
        if any(_comm(child.pid, thread.id) == "lease" for thread in child.threads())
    ]
    return int(found)


def result(daemon: Result, name: str, turns: Mapping[str, Sequence[Turn]]) -> Result:
    """The table by thread, from the turns of one or more daemons in the run of `daemon`."""
    rows: list[dict[str, Cell]] = []
    for group in (*NAMES, AROUND):
        cells: dict[str, Cell] = {"threads": group}
        for when, each in turns.items():
            cells |= _spread(each, group).cells(f"{when}_ms")
        rows.append(cells)
    found = []
    for when, each in turns.items():
        around, speed = _spread(each, AROUND), Spread.of([turn.images_per_s for turn in each])
        found.append(f"{around.median:.1f} ms {when} at {speed.median:.2f} images per second")
    return replace(
        daemon,
        name=name,
        title="Processor time of the worker process by thread, per image",
        headline=f"All but the engine's threads: {', '.join(found)}.",
        rows=rows,
    )


def plot(result: Result, turns: Mapping[str, Sequence[Turn]]) -> Figure:
    """A bar for each group but the engine's."""
    drawn, (axes,) = chart.figure(result)
    names = [name for name in NAMES if name != ENGINE]
    sides = {when: [_spread(each, name) for name in names] for when, each in turns.items()}
    chart.bars(axes, names, sides, [""] * len(names))
    axes.tick_params("x", rotation=30)
    axes.set_ylabel("ms of processor time per image")
    return drawn


def _spread(turns: Sequence[Turn], group: str) -> Spread:
    if group == AROUND:
        return Spread.of([sum(turn.cpu_ms.values()) - turn.cpu_ms[ENGINE] for turn in turns])
    return Spread.of([turn.cpu_ms[group] for turn in turns])


def _group(pid: int, thread_id: int) -> str:
    if thread_id == pid:
        return MAIN
    name = _comm(pid, thread_id)
    return next((group for begin, group in GROUPS.items() if name.startswith(begin)), OTHER)


def _comm(pid: int, thread_id: int) -> str:
    """The thread's name; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/task/{thread_id}/comm").read_text().rstrip("\n")
    except FileNotFoundError:
        return ""
