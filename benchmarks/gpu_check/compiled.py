"""Part: what `torch.compile` of the UNet gains, for two numbers of rows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import bare
from benchmarks.gpu_check import given
from worker.engine.denoising import unet as engine_unet

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting


def run(setting: Setting, found: Finding) -> None:
    """As many tasks as fill one call, in step: their calls have only two numbers of rows.

    The main pass has two rows a task, the degraded pass one.
    """
    rows = setting.compiled_rows
    # The warm-up's call of two rows is padded to the smaller number, too.
    engine_unet.COMPILED_ROWS = (rows // 2, rows)  # type: ignore[assignment]  # fewer of them
    tasks = given.make(setting, rows // 2, setting.steps)
    speeds: dict[bool, float] = {}
    for compiled in (False, True):
        options: dict[str, Any] = {"max_batch_rows": rows, "compiled": compiled}
        with bare.engine(setting.sd15(), **options) as engine:
            began_s = time.perf_counter()
            engine.results(tasks)
            first_s = time.perf_counter() - began_s
            turns = []
            for _ in range(setting.turns):
                began_s = time.perf_counter()
                results = engine.results(tasks)
                turns.append(time.perf_counter() - began_s)
        speeds[compiled] = len(tasks) / min(turns)
        found.row(
            unet="compiled" if compiled else "eager",
            tasks=len(tasks),
            most_rows=rows,
            first_run_s=first_s,
            pictures_per_s=speeds[compiled],
            jobs_in_a_step=results[0].batch,
        )
        torch.cuda.empty_cache()
    gain = speeds[True] / speeds[False]
    found.number("compiled_gain", gain)
    found.headline(f"Compiled, {len(tasks)} tasks run {gain:.2f} times as fast as eagerly.")
