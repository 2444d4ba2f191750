"""Runs the parts one after the other within a total of seconds, and keeps what they found."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu_check import child, outcome
from benchmarks.gpu_check.outcome import Outcome, Status
from benchmarks.gpu_check.parts import FIRST, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.context import ForkServerContext

    from benchmarks.gpu_check.parts import Part
    from benchmarks.gpu_check.setting import Setting

#: Kept free at the end, for writing and removing files.
RESERVE_S = 5.0
#: Time for a part's process to be gone after it was killed.
GONE_S = 5.0
LOG_CHARS = 2500


def run(
    parts: Sequence[Part],
    setting: Setting,
    deadline_s: float,
    keep: Callable[[list[Outcome]], None],
    preloaded: str = child.PRELOADED,
) -> list[Outcome]:
    """Run the parts until `deadline_s` of the monotonic clock; `keep` is called after each.

    The module `preloaded` is imported once, by the server that the parts are forked from.
    """
    # CUDA is asked through NVML: a process that has asked CUDA itself can't fork one that uses it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"  # a hub that is asked by mistake may not answer for minutes
    if not setting.on_gpu:  # two threads of each process on few cores wait for each other
        os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preloaded])
    found: list[Outcome] = []
    for part in parts:
        left_s = deadline_s - time.monotonic() - RESERVE_S
        if (reason := _lacks(part, setting, found)) is not None:
            found.append(Outcome(part.name, Status.SKIPPED, reason=reason))
        elif left_s < part.needs_s:
            reason = f"{max(0, left_s):.0f} s were left, it needs {part.needs_s:g} s"
            found.append(Outcome(part.name, Status.NOT_REACHED, reason=reason))
        else:
            print(f"{part.title} …", flush=True)
            found.append(_run(context, part, setting, min(part.limit_s, left_s)))
            print(f"  {found[-1].status} in {found[-1].seconds:.0f} s. {found[-1].headline}")
        keep(found)
    return found


def _lacks(part: Part, setting: Setting, found: Sequence[Outcome]) -> str | None:
    """Why a part can't run here, or after what was found; None if it can."""
    if part.gpu_only and not setting.on_gpu:
        return "only on a GPU"
    ended = {each.name: each.status for each in found}
    if ended.get(FIRST, Status.PASSED) is not Status.PASSED:
        return "the device can't be used: see the environment"
    if part.sd15 and ended.get(WEIGHTS, Status.PASSED) is not Status.PASSED:
        return "there are no weights of Stable Diffusion 1.5's size"
    return None


def _run(context: ForkServerContext, part: Part, setting: Setting, limit_s: float) -> Outcome:
    """Run one part in its process, and end that at the limit."""
    began_s = time.monotonic()
    given = (f"{part.package}.{part.name}", setting, os.getpid(), limit_s)
    process = context.Process(target=child.run, args=given)
    process.start()
    try:
        process.join(limit_s)
    finally:  # also on Ctrl-C
        late = process.is_alive()
        if late:
            _kill(process.pid)
            process.join(GONE_S)
    seconds = time.monotonic() - began_s
    # A part ends itself at its limit, too, should it come first.
    late = late or seconds >= limit_s
    return _ended(
        part, setting, process.exitcode, seconds=seconds, limit_s=limit_s if late else None
    )


def _ended(
    part: Part, setting: Setting, exitcode: int | None, *, seconds: float, limit_s: float | None
) -> Outcome:
    """What a part has left, with the reason of its end where it could not write that."""
    folder = Path(setting.folder)
    file, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    found = outcome.load(file) if file.exists() else Outcome(part.name, Status.KILLED)
    if found.status is Status.KILLED:
        if limit_s is not None:
            reason = f"ended at its limit of {limit_s:.0f} s; what it had found until then is here"
            found = replace(found, reason=reason)
        else:
            reason = f"its process ended with exit status {exitcode}"
            found = replace(found, status=Status.FAILED, reason=reason)
    if found.status in (Status.KILLED, Status.FAILED) and log.exists():
        found = replace(found, log=log.read_text(errors="replace")[-LOG_CHARS:].strip())
    return replace(found, seconds=round(seconds, 1))


def _kill(pid: int | None) -> None:
    """Kill a part's process and those that it forked; servers have a guard that ends them."""
    assert pid is not None
    for kill in (os.killpg, os.kill):  # it may have no group of its own yet
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
