"""Part: a worker's process is killed in a call, and another one ends its tasks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu_check import given, service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting

TASKS = 4
#: Steps of a task: about half of them are done when the process is killed.
GPU_STEPS, CPU_STEPS = 100, 12
CHECKPOINT_EVERY = 4


def run(setting: Setting, found: Finding) -> None:
    """Kill the worker when the first task is half-way; time what follows."""
    steps = GPU_STEPS if setting.on_gpu else CPU_STEPS
    settings = {
        "checkpoint_every": CHECKPOINT_EVERY,
        "max_batch_rows": setting.max_batch_rows,
    }
    with (
        service.servers() as servers,
        service.daemon(servers, setting.sd15(), settings) as daemon,
    ):
        handles = [daemon.submit(task) for task in given.make(setting, TASKS, steps)]
        events = handles[0].events(timeout=service.STOP_S * 4)
        for event in events:
            if event.type == "progress" and event.step >= steps // 2:
                break
        (victim,) = _workers(daemon.process.pid)
        os.kill(victim, signal.SIGKILL)
        killed_s = time.perf_counter()
        resumed_from = None
        for event in events:
            if event.type == "started":
                resumed_from = event.resumed_from_step
                found.row(what="killed to claimed again", seconds=time.perf_counter() - killed_s)
            elif event.type == "progress":
                found.row(what="killed to the next step", seconds=time.perf_counter() - killed_s)
                break
        ended = [daemon.result(handle) for handle in handles]
        took_s = time.perf_counter() - killed_s
        (successor,) = _workers(daemon.process.pid)
    found.row(what="killed to all pictures in S3", seconds=took_s)
    pictures = sum(len(each.images) for each in ended)
    found.check("all tasks ended with a picture", holds=pictures == TASKS)
    found.check("another process ran them", holds=successor != victim)
    found.note(f"The first task went on from step {resumed_from or 0} of {steps}.")
    found.headline(
        f"{pictures} of {TASKS} tasks ended well; all pictures {took_s:.1f} s after the SIGKILL."
    )


def _workers(supervisor: int) -> list[int]:
    """The worker processes below the supervisor's fork server: each leads a session."""
    parents = dict(_parents())
    return [
        pid
        for pid, parent in parents.items()
        if parents.get(parent) == supervisor and _leads_session(pid)
    ]


def _parents() -> Iterator[tuple[int, int]]:
    """Every process and its parent."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        if fields[0] != "Z":
            yield int(file.parent.name), int(fields[1])


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False
