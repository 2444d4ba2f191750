"""Measures how many rows one UNet call should have on this device."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from worker.engine import device_errors
from worker.engine.pipeline import device_of, native_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.pipeline import Pipeline

logger = logging.getLogger(__name__)

#: Numbers of rows that are measured.
TRIED_ROWS = (1, 2, 4, 8, 16, 32, 64)
#: Longest acceptable call, in seconds: a new task or a cancel may wait this long.
MAX_CALL_S = 0.5
#: Most calls of one size that are timed, while all of them together take less than the budget.
TIMED_CALLS, TIMING_BUDGET_S = 4, 0.15
#: More rows must make each row cheaper by this share to be worth the longer call.
MIN_GAIN = 0.05
#: A limit that was lowered grows by this factor after so many calls, at first and at most.
GROWTH, GROW_AFTER_CALLS, MAX_GROW_AFTER_CALLS = 1.25, 100, 10_000
#: Share of the device's memory that is left to the decoder and to others.
SPARE_MEMORY = 0.2


@dataclass(frozen=True)
class Capacity:
    """Most rows of one UNet call, measured with latents of `cells` = height x width."""

    rows: float
    cells: int
    #: Limit for latents of any size.
    max_rows: int = TRIED_ROWS[-1]
    #: What `rows` was before a call did not fit; it grows back to it.
    measured_rows: float = 0.0
    #: Calls since then, and how many of them are waited for before `rows` grows.
    calls: int = 0
    grow_after: int = GROW_AFTER_CALLS

    def limit(self, height: int, width: int) -> int:
        """Most rows for latents of this size: time and memory of a row are proportional to it."""
        return min(self.max_rows, max(1, int(self.rows * self.cells / (height * width))))

    def halved(self, rows: int, height: int, width: int) -> Capacity:
        """The capacity after a call of `rows` rows of this size did not fit: half of them.

        Each time twice as many calls are waited for before it grows again.
        """
        return replace(
            self,
            rows=min(self.rows, rows * height * width / self.cells / 2),
            measured_rows=max(self.rows, self.measured_rows),
            calls=0,
            grow_after=min(2 * self.grow_after, MAX_GROW_AFTER_CALLS),
        )

    def after_call(self) -> Capacity:
        """The capacity after a call that fitted: it may be time to try a few more rows."""
        if self.rows >= self.measured_rows:
            return self
        if self.calls + 1 < self.grow_after:
            return replace(self, calls=self.calls + 1)
        return replace(self, rows=min(self.measured_rows, self.rows * GROWTH), calls=0)


def capacity(pipe: Pipeline, unet: Callable[..., Any], max_rows: int | None) -> Capacity:
    """Measure the capacity of the device; with `max_rows` only warm up with a call of two rows.

    `unet` takes latents, timesteps and embeddings.
    """
    height, width = native_size(pipe)
    call = _caller(pipe, unet, (height, width))
    if max_rows is not None:
        call(2)
        return Capacity(max_rows, height * width, max_rows)
    device = device_of(pipe)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rows, seconds = _measure(call, device)
    shown = ", ".join(f"{n}: {1000 * each:.0f} ms" for n, each in seconds.items())
    logger.info("at most %d rows per UNet call; times by rows: %s", rows, shown)
    return Capacity(rows, height * width)


def _caller(
    pipe: Pipeline, unet: Callable[..., Any], size: tuple[int, int]
) -> Callable[[int], None]:
    config, tokens = pipe.unet.config, pipe.tokenizer.model_max_length
    like = {"device": device_of(pipe), "dtype": pipe.unet.dtype}

    def call(rows: int) -> None:
        noisy = torch.zeros(rows, config.in_channels, *size, **like)
        embeds = torch.zeros(rows, tokens, config.cross_attention_dim, **like)
        unet(noisy, [0.0] * rows, embeds)
        if noisy.is_cuda:
            torch.cuda.synchronize(noisy.device)

    return call


def _measure(call: Callable[[int], None], device: torch.device) -> tuple[int, dict[int, float]]:
    """The fewest rows whose time per row is within `MIN_GAIN` of the best; all times by rows."""
    seconds: dict[int, float] = {}
    for rows in TRIED_ROWS:
        try:
            call(rows)  # not timed: the first call of a size may select kernels, or compile
            seconds[rows] = _best_s(call, rows)
        except RuntimeError as error:
            if not seconds or not device_errors.is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            break
        if not _is_short(seconds, rows) or not _has_room(device):
            break
    short = {rows: each for rows, each in seconds.items() if _is_short(seconds, rows)}
    cheapest_s = min(each / rows for rows, each in short.items())
    worth = [rows for rows, each in short.items() if each / rows <= cheapest_s * (1 + MIN_GAIN)]
    return min(worth), seconds


def _is_short(seconds: dict[int, float], rows: int) -> bool:
    """Whether a call is short enough; more is allowed when one row takes long, as with offload."""
    return seconds[rows] <= max(MAX_CALL_S, 1.5 * seconds[1])


def _best_s(call: Callable[[int], None], rows: int) -> float:
    """The fastest of 2 calls, or of up to `TIMED_CALLS` short ones: other load disturbs them."""
    times_s = [_call_s(call, rows)]
    while len(times_s) == 1 or (
        len(times_s) < TIMED_CALLS and sum(times_s) + times_s[-1] < TIMING_BUDGET_S
    ):
        times_s.append(_call_s(call, rows))
    return min(times_s)


def _call_s(call: Callable[[int], None], rows: int) -> float:
    began_s = time.perf_counter()
    call(rows)
    return time.perf_counter() - began_s


def _has_room(device: torch.device) -> bool:
    """Whether twice the rows would fit: twice the peak's growth, and still `SPARE_MEMORY` free."""
    if device.type == "cpu":
        return True
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    held_bytes = torch.cuda.memory_allocated(device)
    unused_bytes = torch.cuda.memory_reserved(device) - held_bytes
    growth_bytes = torch.cuda.max_memory_allocated(device) - held_bytes
    return 2 * growth_bytes < free_bytes + unused_bytes - total_bytes * SPARE_MEMORY
