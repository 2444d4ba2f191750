"""Part: the device's memory is taken away from the engine, which must go on with smaller calls."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks import unet as unets
from benchmarks.gpu_check import given, memory_holder
from benchmarks.gpu_check.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting
    from benchmarks.model import Model
    from worker.engine.jobs.job import Job, JobResult
    from worker.engine.loaded_model import LoadedModel

GPU_TASKS, CPU_TASKS = 32, 4
#: Rows of a call that the tasks fill; what the warm-up would measure may be fewer, and fit.
GPU_ROWS = 64
#: Of what the usual calls need at their peak, what is left for them.
LEFT_SHARE = 0.3
#: Left at least, beside what a decode needs, for the kernels that CUDA loads.
LEFT_BYTES = 2**30
#: In the rehearsal, calls of more rows run out of memory.
CPU_ROWS = 3


def run(setting: Setting, found: Finding) -> None:
    """The same tasks with memory, without it, and with it again."""
    with ExitStack() as stack:
        press: Callable[[], str]
        release: Callable[[], object]
        rounds: Rounds
        model = setting.sd15()
        if setting.on_gpu:
            holder = stack.enter_context(memory_holder.started(setting.device))
            rounds = Rounds(model.spec, setting.device, GPU_ROWS)
            press = partial(_press, setting, model, holder, rounds)
            release = partial(holder.leave, None)
        else:
            short_of = _Rehearsed()
            rounds = Rounds(model.spec, "cpu", setting.max_batch_rows, short_of.into)
            press, release = short_of.press, short_of.release
            found.note("Rehearsal: the UNet raises torch's OutOfMemoryError; no memory is short.")
        count = GPU_TASKS if setting.on_gpu else CPU_TASKS
        jobs = [task.job() for task in given.make(setting, count, setting.few_steps)]
        rounds.results(jobs[:1])
        usual = _attempt(rounds, jobs, setting, found, "before")
        short = _attempt(rounds, jobs, setting, found, press())
        release()
        after = _attempt(rounds, jobs, setting, found, "after")
    _judge(found, count, usual, short, after)


def _attempt(
    rounds: Rounds, jobs: Sequence[Job], setting: Setting, found: Finding, when: str
) -> tuple[int, list[JobResult]]:
    """Run all jobs; gives the limit of rows afterwards and the results of those that ended well."""
    side = setting.size_px // 8
    began_s = time.perf_counter()
    futures: list[Future[JobResult]] = [rounds.submit(job) for job in jobs]
    while rounds.step():
        pass
    ended = [future.result(timeout=0) for future in futures if future.exception(timeout=0) is None]
    limit = rounds.runner.unet.capacity.limit(side, side)
    found.row(
        when=when,
        tasks=len(jobs),
        ended_well=len(ended),
        seconds=time.perf_counter() - began_s,
        row_limit_afterwards=limit,
    )
    for future in futures:
        if (error := future.exception(timeout=0)) is not None:
            found.note(f"{when}: {error!r:.300}")
            break
    return limit, ended


def _judge(
    found: Finding,
    count: int,
    usual: tuple[int, list[JobResult]],
    short: tuple[int, list[JobResult]],
    after: tuple[int, list[JobResult]],
) -> None:
    for when, (_, ended) in (("before", usual), ("without memory", short), ("after", after)):
        found.check(f"all tasks ended well {when}", holds=len(ended) == count)
    found.check("the limit of rows was lowered: memory did run out", holds=short[0] < usual[0])
    pairs = zip(usual[1], short[1], strict=False)
    apart = [float(np.abs(_pixels(one) - _pixels(other)).mean()) for one, other in pairs]
    if len(apart) == count:
        found.note(f"The pictures made without memory differ by {mean(apart):.3g} of 255.")
    found.number("row_limit_lowered", short[0])
    found.headline(
        f"{len(short[1])} of {count} tasks ended well without memory; the limit went from "
        f"{usual[0]} rows to {short[0]}."
    )


def _pixels(result: JobResult) -> np.ndarray:
    return np.asarray(result.images[0].pixels, float)


def _press(
    setting: Setting, model: Model, holder: memory_holder.MemoryHolder, rounds: Rounds
) -> str:
    """Leave the engine a share of what its largest call needs; tells how much."""
    unet = rounds.runner.pipe.unet
    torch.cuda.reset_peak_memory_stats(setting.device)
    before_bytes = torch.cuda.memory_allocated(setting.device)
    with torch.inference_mode():
        unet(*unets.inputs(model, unet, GPU_ROWS))
    need_bytes = torch.cuda.max_memory_allocated(setting.device) - before_bytes
    torch.cuda.empty_cache()
    decode_bytes = int(1.3 * rounds.runner.decoder.needed_bytes)
    free_bytes = holder.leave(LEFT_BYTES + max(int(LEFT_SHARE * need_bytes), decode_bytes))
    return (
        f"with {free_bytes / 2**30:.2f} GiB free, where {GPU_ROWS} rows need "
        f"{need_bytes / 2**30:.2f} GiB"
    )


class _Rehearsed:
    """The rehearsal's memory: while it is short, a UNet raises as torch does on a full device."""

    def __init__(self) -> None:
        self._is_short = False

    def press(self) -> str:
        """Make it short; there is no memory to tell of."""
        self._is_short = True
        return f"more than {CPU_ROWS} rows refused"

    def release(self) -> None:
        """Give it back."""
        self._is_short = False

    def into(self, model: LoadedModel) -> None:
        """Change a loaded model's UNet."""
        unet = model.pipeline.unet
        usual = unet.forward

        def forward(noisy: torch.Tensor, *args: object, **kwargs: object) -> object:
            if self._is_short and len(noisy) > CPU_ROWS:
                message = "CUDA out of memory. (rehearsal)"
                raise torch.OutOfMemoryError(message)
            return usual(noisy, *args, **kwargs)

        unet.forward = forward
