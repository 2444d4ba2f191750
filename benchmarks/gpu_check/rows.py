"""Part: the limit of rows that the warm-up measures, beside what fits into the memory."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch

from benchmarks import unet as unets
from benchmarks.gpu_check.rounds import Rounds
from worker.engine.device import device_errors

if TYPE_CHECKING:
    from typing import Any

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting
    from benchmarks.model import Model

#: Rows of the calls that are tried at the usual size; fewer of a larger one, by its area.
GPU_ROWS = (16, 32, 64, 256, 512, 1024, 1536, 2048)
CPU_ROWS = (1, 2, 8)
#: Seconds after which no larger call of a size is tried; the rows from which one call is enough.
TRY_S, ONCE_ROWS = 15.0, 256


def run(setting: Setting, found: Finding) -> None:
    """The engine's own limit, then calls of the same UNet until one does not fit."""
    told = _Told()
    logging.getLogger("worker").addHandler(told)
    logging.getLogger("worker").setLevel(logging.INFO)
    rounds = Rounds(setting.sd15().spec, setting.device, setting.max_batch_rows)
    capacity = rounds.runner.unet.capacity
    decodes = rounds.runner.decoder.capacity
    for size_px in (setting.size_px, setting.large_px):
        side = size_px // 8
        model = setting.sd15(size_px)
        limit = capacity.limit(side, side)
        largest = _largest(setting, found, model, rounds.runner.pipe.unet)
        images = decodes.limit(side, side)
        found.note(
            f"{size_px} px: the warm-up allows {limit} rows a call and {images} images a decode; "
            f"the largest call that ran had {largest} rows."
        )
        if size_px == setting.size_px:
            found.number("row_limit", limit)
            found.headline(
                f"The warm-up allows {limit} rows at {size_px} px; {largest} rows did fit."
            )
            if setting.on_gpu:
                found.check("a call of the limit's rows fits", holds=largest >= limit)
    for line in told.lines:
        found.note(f"The engine's log: {line}")


def _largest(setting: Setting, found: Finding, model: Model, unet: Any) -> int:  # noqa: ANN401  # diffusers has no types
    """Call with more and more rows until memory or time ends; gives the most that ran."""
    largest, deadline_s = 0, time.perf_counter() + TRY_S
    smaller = ((model.size_px or setting.size_px) // setting.size_px) ** 2
    tried = GPU_ROWS if setting.on_gpu else CPU_ROWS
    for rows in dict.fromkeys(max(1, most // smaller) for most in tried):
        if time.perf_counter() > deadline_s:
            found.note(f"{model.size_px} px: no time for {rows} rows.")
            break
        try:
            seconds, grown_bytes = _call(setting, model, unet, rows)
        except RuntimeError as error:
            if setting.on_gpu:
                torch.cuda.empty_cache()
            what = "out of memory" if device_errors.is_out_of_memory(error) else f"{error!r:.200}"
            found.row(px=model.size_px, rows=rows, call_ms=None, mib=None, mib_a_row=None, end=what)
            break
        mib = None if grown_bytes is None else grown_bytes / 2**20
        found.row(
            px=model.size_px,
            rows=rows,
            call_ms=1000 * seconds,
            mib=mib,
            mib_a_row=None if mib is None else mib / rows,
            end="fits",
        )
        largest = rows
    return largest


def _call(setting: Setting, model: Model, unet: Any, rows: int) -> tuple[float, int | None]:  # noqa: ANN401  # diffusers has no types
    """Seconds of a call, and what it added to the memory allocated before.

    A small call is made twice: the first may select kernels.
    """
    before_bytes = 0
    if setting.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
        before_bytes = torch.cuda.memory_allocated(setting.device)
    given = unets.inputs(model, unet, rows)
    with torch.inference_mode():
        for _ in range(2 if rows < ONCE_ROWS else 1):
            began_s = time.perf_counter()
            unet(*given)
            if setting.on_gpu:
                torch.cuda.synchronize(setting.device)
            seconds = time.perf_counter() - began_s
    if not setting.on_gpu:
        return seconds, None
    return seconds, torch.cuda.max_memory_allocated(setting.device) - before_bytes


class _Told(logging.Handler):
    """Keeps what the engine's warm-up says."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the lines about limits."""
        if (line := record.getMessage()).startswith("at most"):
            self.lines.append(line)
